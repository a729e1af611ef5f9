"""PUBLIC: packages: manifest, content digest, zip rules, install, store, retention."""
