# Everything a fresh machine with Git, make and Python 3.11 needs. `make demo` and `make test` do all the set-up.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo demo-check test bench sim sim-nightly sim-mutants sim-crashes lease-rounds lint types imports schemas check pins clean

.venv/.ready: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tdie needs Python 3.11 or later: make PYTHON=...")'
	@echo "setting up .venv (once) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: .venv/.ready          ## the sample repository, running on this machine; Ctrl-C stops everything
	@$(BIN)/python -m reconciler.demo

demo-check: .venv/.ready    ## the same detached: start, push a change, verify, stop, nothing left
	@$(BIN)/python -m reconciler.demo --check

test: .venv/.ready          ## a file at a time, in three workers even on two cores: many tests wait for other processes
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

bench: .venv/.ready
	$(BIN)/python -m tests.bench

sim: .venv/.ready           ## seeded histories of the whole system with faults, on virtual time
	$(BIN)/python -m reconciler.simulation --seeds 200

lease-rounds: .venv/.ready  ## trouble for a strict lease with real processes and real Consuls (as root), seen by an outside witness
	$(BIN)/python -m tests.e2e.rounds --rounds 50
	$(BIN)/python -m tests.e2e.rounds --servers 3 --rounds 50 --outage 60

sim-nightly: .venv/.ready   ## 25,000 of them; interrupted, it goes on where it was (tests/sim/nightly.jsonl, for the code it names)
	$(BIN)/python -m reconciler.simulation --seeds 25000 --notes tests/sim/nightly.jsonl

sim-mutants: .venv/.ready   ## systems broken on purpose: which history shows it (writes tests/sim/caught.txt)
	$(BIN)/python -m tests.sim.mutants

sim-crashes: .venv/.ready   ## trouble before and after every effect of 63 transitions: each ends as if there had been none
	$(BIN)/python -m tests.sim.crashes

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.ready
	$(BIN)/mypy

imports: .venv/.ready
	$(BIN)/lint-imports

schemas: .venv/.ready       ## fails when schemas/ is not what the models say
	$(BIN)/python -m reconciler.model.schemas --check

check: lint types imports schemas test demo-check

pins:                       ## compile the pinned requirements anew (needs uv)
	for set in "requirements.txt --extra controller" "requirements-agent.txt" \
	           "requirements-dev.txt --extra controller --group dev"; do \
	  set -- $$set; out=$$1; shift; \
	  $(BIN)/uv pip compile --quiet pyproject.toml "$$@" --generate-hashes --no-annotate --no-header --universal \
	    --no-emit-index-url --no-emit-find-links --python-version 3.11 -o $$out; \
	done

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
