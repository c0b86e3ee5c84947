# Each target installs the Debian packages that it needs and lacks.

BUILD_PACKAGES = gcc libc6-dev make cmake
RUN_PACKAGES = iproute2 util-linux fuse3

.PHONY: build release demo test bench bench-files install
build:
	@scripts/need-packages $(BUILD_PACKAGES)
	cargo build --locked -p unum-cli -p unum-node -p unum-init

release:
	@scripts/need-packages $(BUILD_PACKAGES)
	cargo build --locked --release -p unum-cli -p unum-node -p unum-init

# Development builds: dependencies are optimised in them, and they are made in half the time.
demo: build
	@scripts/need-packages $(RUN_PACKAGES) tar
	@scripts/demo

test:
	@scripts/need-packages $(BUILD_PACKAGES) $(RUN_PACKAGES) python3 acl rsync git
	@scripts/test

bench:
	@scripts/need-packages $(BUILD_PACKAGES)
	@scripts/bench

bench-files:
	@scripts/need-packages $(BUILD_PACKAGES)
	@scripts/bench-files

install: release
	@scripts/install
