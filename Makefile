# `make help` lists the targets. Tools are pinned in tools/go.mod; nothing has to be installed but Go.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOL := go tool -modfile=tools/go.mod
# sqlc parses SQL with a library in C, or, without C, with the same library compiled to WebAssembly: that builds anywhere.
SQLC := CGO_ENABLED=0 $(TOOL) sqlc

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/setpoint
	go build -trimpath -o bin/setpoint ./cmd/setpoint

.PHONY: run
run: build ## Run a server with a PostgreSQL of its own (flags: ARGS='--data-dir DIR')
	@scripts/ensure-postgres.sh --for run
	@exec bin/setpoint dev $(ARGS)

# Looks for waits of milliseconds: beside the other packages it would see theirs.
ALONE = '^TestPruneUnderLoad$$'

.PHONY: test
test: ## Run every test, with the race detector, on a PostgreSQL that it finds (flags: ARGS='-run Name')
	@scripts/ensure-postgres.sh --for test
	go run ./internal/testkit/pgtest -- go test -race -timeout 20m $(or $(ARGS),-skip $(ALONE)) ./...
	$(if $(ARGS),,go run ./internal/testkit/pgtest -- go test -race -timeout 20m -run $(ALONE) ./internal/sweep)

.PHONY: example
example: build ## Tune compression over this folder, on a server of its own
	@scripts/ensure-postgres.sh --for run
	@scripts/with-dev.sh go run ./examples/tune-compression $(ARGS)

.PHONY: bench
bench: build ## Measure, on a server of its own (flags: ARGS='graph --edges 1000')
	@scripts/ensure-postgres.sh --for run
	@scripts/with-dev.sh go -C bench run . $(or $(ARGS),graph)

.PHONY: man
man: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
man: ## Write the manual pages into man/
	go run ./cmd/setpoint man --dir man

.PHONY: generate
generate: third_party ## Generate Go and OpenAPI from proto/, and Go from queries/
	$(TOOL) buf generate
	$(SQLC) generate

.PHONY: third_party
third_party: # The .proto files that ours import, from the Go modules that carry them.
	@cd tools && go run ./protodeps ../third_party/proto

.PHONY: lint
lint: third_party ## Lint Go, proto and SQL, and look for breaking changes of the API
	go mod tidy -diff
	cd tools && go mod tidy -diff
	$(TOOL) golangci-lint run ./...
	cd tools && go vet ./...
	cd bench && go mod tidy -diff
	cd bench && go tool -modfile=../tools/go.mod golangci-lint run ./...
	$(TOOL) buf lint
	$(TOOL) buf format --diff --exit-code proto
	$(TOOL) buf breaking proto --against proto/released.binpb

.PHONY: vet-sql
vet-sql: build ## Prepare every query on a database, and check the rules of queries/
	@scripts/ensure-postgres.sh --for test
	go run ./internal/testkit/pgtest -migrate -- env -u SETPOINT_TEST_DATABASE_URL $(SQLC) vet

.PHONY: check
check: lint vet-sql test ## Everything that CI checks
	scripts/check-generated.sh
	scripts/check-run.sh
	scripts/check-rest.sh

.PHONY: release-api
release-api: third_party ## Make today's API the one that later changes must not break
	$(TOOL) buf build proto -o proto/released.binpb
