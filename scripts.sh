# Source this file in bash or zsh:  . ./scripts.sh
#
#   activate                     create the virtual environment if necessary, and activate it
#   samplegen DEPTH [OPTION...]  create samples/, a tree with that many levels
#   sandbox_p [OPTION...]        upload samples/ to a sandbox, mode parallel; no account needed
#   sandbox_c [OPTION...]        the same, mode concurrent
#   localstack_p PORT [OPT...]   upload samples/ to the LocalStack on that port, mode parallel
#   localstack_c PORT [OPT...]   the same, mode concurrent
#   runtest [OPTION...]          run the tests in six processes; options go to pytest
#
# They work from any directory, always on the files next to this one, and return the exit status of
# what they run.  (dash must be in that directory when it sources this file.)  All of them activate
# the environment; runtest does so in a subshell.  samples/ is created (3 levels) if it is needed and
# missing.
#
# The virtual environment is recreated whenever requirements.txt, the Python or its own path has
# changed, or creating it was interrupted.  Set these before the first call to change:
#   PFU_VENV     its path (default: .venv next to this file)
#   PFU_PYTHON   the Python to create it with (default: the first of python3, python3.14 ...
#                python3.9 that is 3.9 or later)

if [ -n "${ZSH_VERSION:-}" ]; then
    eval 'PFU_HOME=${${(%):-%x}:A:h}'
elif [ -n "${BASH_VERSION:-}" ]; then
    PFU_HOME=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
else
    PFU_HOME=$(pwd -P) # other shells do not tell where a file lies that is sourced
fi
if [ "${ZSH_EVAL_CONTEXT:-}" = toplevel ] || [ "${BASH_SOURCE:-}" = "$0" ] ||
    [ "${ZSH_VERSION:-}${BASH_VERSION:-}${0##*/}" = scripts.sh ]; then
    echo "scripts.sh is to be sourced: . ./scripts.sh" >&2
    exit 2
fi
if [ ! -f "$PFU_HOME/pfu.py" ]; then
    echo "scripts.sh: this shell does not tell where it is: cd there first, or use bash or zsh" >&2
    return 2
fi

unalias activate samplegen sandbox_p sandbox_c localstack_p localstack_c runtest 2>/dev/null || :

activate() {
    local venv="${PFU_VENV:-.venv}"
    case $venv in
        /*) ;;
        *) venv=$PFU_HOME/$venv ;;
    esac
    if ! _pfu_stamp "$venv" "${PFU_PYTHON:-$venv/bin/python}" 2>/dev/null |
        cmp -s - "$venv/pfu-stamp"; then
        _pfu_make_venv "$venv" || return
    fi
    . "$venv/bin/activate"
}

samplegen() {
    activate && _pfu_python samplegen.py "$@"
}

sandbox_p() {
    _pfu_prepare && _pfu_python pfu.py samples --mode parallel --sandbox "$@"
}

sandbox_c() {
    _pfu_prepare && _pfu_python pfu.py samples --mode concurrent --sandbox "$@"
}

localstack_p() {
    _pfu_localstack parallel "$@"
}

localstack_c() {
    _pfu_localstack concurrent "$@"
}

runtest() {
    # Tests mostly wait, so six processes pay off even on two cores.
    (
        activate || exit
        [ $# -gt 0 ] || _pfu_say "running the tests: this takes some minutes (every case: runtest --full)"
        _pfu_python -m pytest -n 6 --dist worksteal "$@"
    )
}

# ---- helpers -------------------------------------------------------------------------------

_pfu_say() {
    echo "pfu: $*" >&2
}

_pfu_python() {
    (cd -- "$PFU_HOME" && exec "$VIRTUAL_ENV/bin/python" "$@")
}

_pfu_prepare() {
    activate || return
    [ -d "$PFU_HOME/samples" ] || _pfu_python samplegen.py 3
}

_pfu_localstack() {
    local mode="$1" port="${2:-none}"
    case $port in
        *[!0-9]* | ??????*) port=0 ;;
    esac
    if [ "$port" -lt 1 ] || [ "$port" -gt 65535 ]; then
        _pfu_say "say on which port LocalStack listens: localstack_$(printf %.1s "$mode") 4566"
        return 2
    fi
    shift 2
    _pfu_prepare || return
    (
        unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN
        export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1
        export no_proxy=127.0.0.1
        _pfu_python pfu.py samples s3://pfu-samples --mode "$mode" --create-bucket \
            --endpoint-url "http://127.0.0.1:$port" "$@"
    )
}

# What a virtual environment was created for: its path, its Python, the requirements.  pfu-stamp is
# written last; until then it is empty, which means "ours, but incomplete".
_pfu_stamp() {
    printf '%s\n' "$1"
    "$2" -c 'import sys; print(sys.version_info[:2])' && cat -- "$PFU_HOME/requirements.txt"
}

_pfu_make_venv() {
    local venv="$1" python
    python=$(_pfu_find_python) || return
    _pfu_clear_place "$venv" || return
    _pfu_say "making $venv and installing requirements.txt, some ten seconds ..."
    if ! "$python" -m venv "$venv"; then
        _pfu_say "could not make $venv (above: why)"
        return 1
    fi
    if ! "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --quiet \
        --requirement "$PFU_HOME/requirements.txt"; then
        _pfu_say "could not install requirements.txt (above: why); the next call tries again"
        return 1
    fi
    _pfu_stamp "$venv" "$venv/bin/python" >|"$venv/pfu-stamp"
}

_pfu_clear_place() {
    if [ -e "$1/pfu-stamp" ]; then
        rm -rf -- "$1"
    elif [ -e "$1" ] && [ -n "$(ls -A -- "$1")" ]; then
        _pfu_say "$1 was not made by scripts.sh: remove it, or set PFU_VENV to another place"
        return 1
    fi
    mkdir -p -- "$1" && : >|"$1/pfu-stamp"
}

# Prints the Python to create the environment with.  If that is itself in an environment (perhaps
# the one about to be replaced), prints the one it was created from.
_pfu_find_python() {
    local python
    if [ -n "${PFU_PYTHON:-}" ]; then
        set -- "$PFU_PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9
    fi
    for python in "$@"; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1 || continue
        if ! "$python" -c 'import ensurepip, sys, venv; print(sys._base_executable)' 2>/dev/null
        then
            _pfu_say "$python cannot make virtual environments; on Debian: apt install python3-venv"
            return 1
        fi
        return 0
    done
    if [ -n "${PFU_PYTHON:-}" ]; then
        _pfu_say "PFU_PYTHON is $PFU_PYTHON, which is no Python 3.9 or later"
    else
        _pfu_say "there is no Python 3.9 or later; on Debian: apt install python3 python3-venv"
    fi
    return 1
}
