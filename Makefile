# Two commands: `make run` and `make test`. The rest is what they are made of.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run stop up test check proof bench-models bench-train bench-optim study golden clean

run: $(INSTALLED)          ## raw data to a served model; `make run ARGS="--set train.backend=flax"`
	$(BIN)/tandem run $(ARGS)

stop: $(INSTALLED)         ## end every process that `make run` or `make up` started
	$(BIN)/tandem stop

up: $(INSTALLED)           ## Prefect server, worker and deployments, for the UI and the schedule
	$(BIN)/tandem up

# Tests that start Ray, Prefect or other processes come last: they wait more than they compute. Each
# file has ports and folders of its own, so that two may run at once.
test: check                ## format, types, layers, tests: what CI runs
	$(BIN)/python -m pytest -m "not slow and not proof" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "slow and not proof" --numprocesses 2 --dist loadfile

check: $(INSTALLED)
	$(BIN)/black --check --quiet . || ($(BIN)/black --diff --quiet . | head -50; exit 1)
	$(BIN)/flake8
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

proof: $(INSTALLED)        ## the long proofs
	$(BIN)/python -m pytest -m proof $(ARGS)

bench-models: $(INSTALLED) ## speed of both twins beside transformers
	$(BIN)/python -m benchmarks.models $(ARGS)

bench-train: $(INSTALLED)  ## speed of training beside other loops; ARGS="--quick" for a glance
	$(BIN)/python -m benchmarks.train $(ARGS)

bench-optim: $(INSTALLED)  ## speed of the optimizer rules beside torch.optim and optax
	$(BIN)/python -m benchmarks.optim $(ARGS)

study: $(INSTALLED)        ## every rule tuned alike on two tasks; ARGS="--scale 4" for longer runs
	$(BIN)/python -m benchmarks.study $(ARGS)

golden: $(INSTALLED)       ## write the golden texts anew; read the diff before you commit it
	$(BIN)/python -m pytest -m "not proof and not slow" --update-golden

# torch comes with its own dependencies, which differ between machines with and without a GPU;
# everything else is exactly what the lock says. DeepSpeed's build asks the installed torch.
$(INSTALLED): requirements.lock pyproject.toml optim/native/update.c optim/native/rules.h
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --constraint requirements.lock setuptools wheel "$$(grep '^torch==' requirements.lock)"
	grep -v '^deepspeed==' requirements.lock > .venv/without-deepspeed.txt
	$(BIN)/python -m pip install -qq --no-deps --requirement .venv/without-deepspeed.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -qq --no-deps --no-build-isolation "$$(grep '^deepspeed==' requirements.lock)"
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

clean:                     ## forget the environment and every result
	rm -rf .venv artifacts .tandem
