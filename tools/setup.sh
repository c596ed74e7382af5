#!/usr/bin/env bash
# Make what sparkdist needs on this machine, and nothing that is there already.
#   tools/setup.sh venv     .venv with the package (editable) and its tools at the locked versions
#   tools/setup.sh java     print the home of a Java 17 or newer; install one first if need be
#   tools/setup.sh browser  print the path of a Chromium; install one first if that can be done
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'sparkdist: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Run a command silently; if it fails, show the end of what it said.
step() {
    local log
    log=$(mktemp)
    if "$@" >"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        tail -n 40 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

may_apt() { [[ $(id -u) = 0 ]] && command -v apt-get >/dev/null; }

# Install the first of these packages that Debian or Ubuntu has.
apt_install() {
    local package
    step apt-get update || return 1
    for package in "$@"; do
        apt-cache show "$package" >/dev/null 2>&1 || continue
        step env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
            install --yes --no-install-recommends "$package"
        return
    done
    say "apt has none of: $*"
    return 1
}

# --- .venv ----------------------------------------------------------------------------------

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.{14,13,12,11,10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.10 or newer is needed, but ${PYTHON:-python3} is" \
        "$("${PYTHON:-python3}" --version 2>/dev/null || echo missing): install one, as root on" \
        "Debian or Ubuntu: apt-get install python3-venv; or say 'PYTHON=/path/to/python3 make venv'"
}

# Debian and Ubuntu keep ensurepip, without which a venv has no pip, in a package of its own.
need_ensurepip() {
    local python=$1 package
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if may_apt; then
        say "installing $package with apt-get"
        apt_install "$package" python3-venv || true
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module: install it, as root: apt-get install $package"
}

pip_install() {
    step .venv/bin/python -m pip install "$@" ||
        fail "pip could not install $*: see above; 'make venv' tries again"
}

# The stamp says for which checkout (line 1) and which pins (line 2) .venv is complete.
make_venv() {
    local stamp=.venv/sparkdist-stamp here wanted found='' python
    here=$(pwd -P)
    wanted="$here
$(cat pyproject.toml constraints.txt | cksum)"
    [[ ! -e "$stamp" ]] || found=$(cat "$stamp")
    if [[ "$found" = "$wanted" ]] && .venv/bin/python -c '' 2>/dev/null; then
        return
    fi
    # A stamp of another place, or none of a finished one: ours, and of no use any more.
    if [[ -n "$found" ]] &&
        { [[ "${found%%$'\n'*}" != "$here" ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
        say "removing a .venv that is unfinished or was made elsewhere"
        rm -rf .venv/bin .venv
    fi
    if [[ ! -e .venv/bin/python ]]; then
        rm -rf .venv
        python=$(find_python)
        need_ensurepip "$python"
        say "making .venv with $("$python" --version) ($python)"
        mkdir -p .venv
        echo unfinished >"$stamp"
        step "$python" -m venv .venv || fail "could not make .venv: see above"
    fi
    say "installing the package and its tools into .venv (PySpark alone is 450 MB: the first" \
        "time takes minutes)"
    echo unfinished >"$stamp"
    # uv makes environments without pip.
    .venv/bin/python -m pip --version >/dev/null 2>&1 || step .venv/bin/python -m ensurepip ||
        fail ".venv has no pip and cannot get one: remove .venv and say 'make venv'"
    # 21.3 is the first pip that installs a pyproject.toml editable; 23.0, Debian 12's, does not
    # get to an end with extras that name extras.
    pip_install 'pip>=24'
    pip_install -e '.[dev]' -c constraints.txt
    echo "$wanted" >"$stamp"
    say ".venv is ready"
}

# --- Java -----------------------------------------------------------------------------------

# Print the home of the first Java that is new enough; each is asked itself, so that "1.8",
# "21-ea", shims and Java's own chatter on stderr do not matter.
find_java() {
    local java told major home
    for java in "${JAVA_HOME:+$JAVA_HOME/bin/java}" java /usr/lib/jvm/*/bin/java \
        /Library/Java/JavaVirtualMachines/*/Contents/Home/bin/java; do
        told=$("$java" -XshowSettings:properties -version 2>&1 </dev/null) || continue
        major=$(sed -n 's/^ *java\.specification\.version = \([0-9]*\).*/\1/p' <<<"$told")
        home=$(sed -n 's/^ *java\.home = //p' <<<"$told")
        if [[ "${major:-0}" -ge 17 ]]; then
            echo "$home"
            return
        fi
    done
    return 1
}

need_java() {
    find_java && return
    if may_apt; then
        say "installing Java with apt-get"
        apt_install openjdk-17-jre-headless openjdk-21-jre-headless default-jre-headless || true
        find_java && return
    fi
    fail "Spark needs Java 17 or newer: install it, on Debian or Ubuntu as root: apt-get install" \
        "openjdk-17-jre-headless (or default-jre-headless); one that is elsewhere is named by JAVA_HOME"
}

# --- a browser, for the tests of the live page ------------------------------------------------

# Ubuntu's chromium-browser may be a stub that only asks for a snap: each is asked itself.
find_browser() {
    local candidate
    for candidate in chromium chromium-browser google-chrome; do
        if "$candidate" --version >/dev/null 2>&1 </dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Nothing fails without one: those tests are skipped and say so.
want_browser() {
    find_browser && return
    if may_apt; then
        say "installing Chromium with apt-get"
        apt_install chromium && apt_install fonts-liberation || true
        find_browser && return
    fi
    say "no Chromium: the tests of the live page in a browser are skipped; on Debian, as root:" \
        "apt-get install chromium fonts-liberation"
}

case "${1:-}" in
    venv) make_venv ;;
    java) need_java ;;
    browser) want_browser ;;
    *) fail "usage: tools/setup.sh venv|java|browser" ;;
esac
