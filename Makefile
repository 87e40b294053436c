# virt-cdp. A newcomer needs two of these: `make demo` and `make test`.

CARGO ?= cargo
PREFIX ?= /usr/local
BIN := target/debug/virt-cdp

SEEDS ?= 500
SEED ?=
DAYS ?= 30
HARBORS ?= 30
MINUTES ?= 20
TARGET ?=
SECONDS ?= 60

.PHONY: help setup build demo test lint e2e unit sim month fuzz soak bench bench-capture bench-history bench-drill man install clean

help:
	@echo 'make demo     protect a real Debian guest, destroy its data, get it back'
	@echo 'make test     everything: lint, unit, end to end on real guests'
	@echo 'make build    the program, $(BIN) (as virtcdpd: the daemon)'
	@echo 'make lint     formatting, clippy with warnings denied, documentation'
	@echo 'make sim      crashes and failing storage from SEEDS=$(SEEDS) seeds, or from SEED=n alone'
	@echo 'make month    DAYS=$(DAYS) of points by a clock set by hand; kills in HARBORS=$(HARBORS); or from SEED=n alone'
	@echo 'make soak     faults against the capture of a real guest for MINUTES=$(MINUTES), in an order from SEED=n'
	@echo 'make fuzz     foreign bytes for SECONDS=$(SECONDS) each, or for TARGET=name alone; guided by coverage where nightly is'
	@echo 'make bench    measurements; see BENCHMARKS.md; of one part: make bench-capture, bench-history, bench-drill'
	@echo 'make install  what virt-cdp host-install lays down, below PREFIX=$(PREFIX)'

setup:
	@tests/setup

build: setup
	$(CARGO) build --locked --workspace --all-targets

demo: setup
	$(CARGO) build --locked -p virt-cdp
	tests/demo

test: setup build lint unit e2e

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

unit: build
	$(CARGO) test --locked --workspace --exclude virt-cdp-tests

# A part of `unit` for 20 seconds; here for as many seeds as one likes.
sim:
	SEEDS=$(SEEDS) SEED=$(SEED) $(CARGO) test --locked -p cdp-core --test sim
	SEEDS=$(SEEDS) SEED=$(SEED) $(CARGO) test --locked -p qemu-hook --test nbd -- --nocapture tap_door

# A part of `unit`; here from any seed, for as many days and as many harbors as one likes.
month:
	SEED=$(SEED) DAYS=$(DAYS) $(CARGO) test --locked -p cdp-core --test month
	SEED=$(SEED) SEEDS=$(HARBORS) $(CARGO) test --locked -p cdp-core --test killed

# A part of `unit` for 5 seconds each, on any toolchain; what is found lies in target/fuzz or in libfuzzer/artifacts.
fuzz:
	tests/fuzz/run '$(TARGET)' '$(SECONDS)'

# What measures how long a guest waits, or how much memory is taken, has the machine for itself; the others share it.
ALONE := bypass:: soak:: exactness:: memory:: pace:: room:: demo::

e2e: build
	tests/guest/build-small >/dev/null
	tests/guest/build-agent >/dev/null
	tests/guest/build-debian >/dev/null
	$(CARGO) test --locked -p virt-cdp-tests -- --test-threads 2 $(foreach one,$(ALONE),--skip $(one))
	$(CARGO) test --locked -p virt-cdp-tests --test e2e -- --test-threads 1 $(ALONE)

# A part of `e2e` for two minutes; here for as long as one likes.
soak: setup
	$(CARGO) build --locked --workspace --all-targets
	tests/guest/build-small >/dev/null
	SOAK_MINUTES=$(MINUTES) SOAK_SEED=$(SEED) $(CARGO) test --locked -p virt-cdp-tests --test e2e -- --nocapture soak

bench: setup
	$(CARGO) build --locked --workspace --bins --examples
	failed=0; for one in bench bench-capture bench-history bench-drill; do tests/$$one || failed=$$?; done; exit $$failed

bench-capture: setup
	$(CARGO) build --locked --workspace --bins --examples
	tests/bench-capture

bench-history: setup
	$(CARGO) build --locked --workspace --bins --examples
	tests/bench-history

bench-drill: setup
	$(CARGO) build --locked --workspace --bins --examples
	tests/guest/build-small >/dev/null
	tests/bench-drill

install: build
	$(BIN) host-install --root '$(DESTDIR)/' --prefix '$(PREFIX)'

clean:
	$(CARGO) clean
