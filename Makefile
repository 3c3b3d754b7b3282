# Chores. The program is a single static file; tests and their machines are in scripts/.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go

.PHONY: build install uninstall test vm lint bench clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/dmlayer ./cmd/dmlayer

install: build
	install -D -m 0755 bin/dmlayer $(DESTDIR)$(PREFIX)/sbin/dmlayer

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/dmlayer

# Everything, as CI runs it. For a part: scripts/test ./layer -run TestX
test:
	scripts/test

# A root shell in a virtual machine with device-mapper.
vm:
	scripts/vm

SHELL := /bin/bash
lint:
	. scripts/lib && . scripts/steps && golangci_lint

bench:
	scripts/bench

# .cache holds downloads and stays; delete it by hand to have them fetched again.
clean:
	rm -rf bin .cache/log
