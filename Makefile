.PHONY: test
test:
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings
	cargo test
