"""Git → DesiredState: a bare mirror, a walk over what changed, documents, packages. The only place that knows Git."""
