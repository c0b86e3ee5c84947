# Each target installs the Debian packages that it needs and lacks.

BUILD_PACKAGES = gcc libc6-dev make cmake
RUN_PACKAGES = iproute2 util-linux fuse3

.PHONY: build release test demo bench install
build:
	@scripts/need-packages $(BUILD_PACKAGES)
	cargo build

release:
	@scripts/need-packages $(BUILD_PACKAGES)
	cargo build --release -p unum-cli -p unum-node -p unum-init

test:
	@scripts/need-packages $(BUILD_PACKAGES) $(RUN_PACKAGES) python3
	@scripts/test

install: release
	@scripts/install
