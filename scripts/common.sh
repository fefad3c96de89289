# Functions for the scripts beside this file, which source it.
# shellcheck shell=bash

# Tells what happens next, set off from the output of programs.
say() { printf '\n==> %s\n' "$*"; }

# Ends the script with a message.
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Installs Debian packages whose command is not there. Each argument is COMMAND or COMMAND:PACKAGE.
need_commands() {
    local wanted packages=()
    for wanted in "$@"; do
        command -v "${wanted%%:*}" >/dev/null || packages+=("${wanted##*:}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    say "Installing ${packages[*]}"
    command -v apt-get >/dev/null || die "apt-get is not there; install by hand what provides: $*"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "run this as root, or install first: ${packages[*]}"
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get -qq update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${packages[@]}" >/dev/null
}

# The Rust toolchain, and what it needs to link: nothing here can be done without.
need_rust() {
    # shellcheck disable=SC1091
    command -v cargo >/dev/null || { [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; } || true
    command -v cargo >/dev/null || die "cargo is not there: install Rust with https://rustup.rs, then run this again"
    need_commands cc:build-essential
}

# Fails unless two trees are alike in names, contents, attributes and hard links. rsync is the judge: it prints what it
# would change (it compares contents, for -c), and prints nothing when there is nothing.
prove_identical() {
    local differences
    differences=$(rsync -aHAXnic --numeric-ids --delete --exclude=/lost+found "$1/" "$2/")
    if [ -n "$differences" ]; then
        printf '%s\n' "$differences" >&2
        die "$1 and $2 differ"
    fi
    echo "rsync -aHAXnic --numeric-ids --delete --exclude=/lost+found $1/ $2/ prints nothing: they are identical."
}
