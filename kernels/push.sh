#!/usr/bin/env bash
# Sends kernels, or a data set that kernels/build.py made, to Kaggle with the official client.
# Usage: bash kernels/push.sh KERNEL… [options of build.py] [-- words for its main calls]
#        bash kernels/push.sh --dataset DIR
# A kernel names the commit it was built of, so nothing is sent from a tree that differs from it. PYTHON chooses the
# Python that builds.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
home=${KAGGLE_CONFIG_DIR:-$HOME/.kaggle}

fail() {
    echo "error: $*" >&2
    exit 2
}

# A call of the client, and what it must say in the end: it ends well where the server refused, too.
send() {
    local wanted=$1 said code=0
    shift
    said=$(kaggle "$@" 2>&1) || code=$?
    echo "$said"
    [ $code -eq 0 ] || fail "kaggle $1 $2: ended with code $code, nothing was sent; what it said is above"
    grep -qF "$wanted" <<<"$said" || fail "kaggle $1 $2: refused; what Kaggle said is above"
    ! grep -qE "are not valid|Upload unsuccessful|^Skipping" <<<"$said" ||
        fail "kaggle $1 $2: sent without what is named above; create or attach that and push again"
}

[ $# -gt 0 ] || fail "name a kernel: bash kernels/push.sh KERNEL…, or --dataset DIR"
command -v kaggle >/dev/null || fail "kaggle: the official client is not there; pip install kaggle"
if [ -z "${KAGGLE_API_TOKEN:-}${KAGGLE_KEY:-}" ]; then
    ls "$home"/kaggle.json "$home"/access_token "$home"/credentials.json 2>/dev/null | grep -q . ||
        fail "kaggle: no credentials; kaggle auth login, or put a token of kaggle.com/settings/api at $home/access_token"
fi

if [ "$1" = --dataset ]; then
    [ $# -eq 2 ] || fail "--dataset: give one folder that kernels/build.py --dataset made"
    folder=$2
    [ -f "$folder/dataset-metadata.json" ] || fail "$folder: no dataset-metadata.json there; kernels/build.py --dataset"
    id=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["id"])' "$folder/dataset-metadata.json")
    if kaggle datasets status "$id" >/dev/null 2>&1; then
        note=$(git -C "$root" rev-parse --short=12 HEAD)
        send "is being created" datasets version -p "$folder" -m "Landfold $note" -r zip
    else
        send "is being created" datasets create -p "$folder" -r zip
    fi
    exit 0
fi

cd "$root"
changed=$(git status --porcelain | head -n 1)
[ -z "$changed" ] || fail "the tree differs from its commit (${changed:3}); commit or stash, then push"
for word in "$@"; do
    case $word in
    --out | --out=*) fail "--out: push.sh sends what it builds into build/" ;;
    --) break ;;
    esac
done
names=()
for word in "$@"; do
    case $word in
    -*) break ;;
    all) for file in kernels/*/kernel.yaml; do names+=("$(basename "$(dirname "$file")")"); done ;;
    *) names+=("$word") ;;
    esac
done
[ ${#names[@]} -gt 0 ] || fail "name the kernels first, then the options of build.py"
"$python" kernels/build.py --out build "$@"
for name in "${names[@]}"; do
    send "successfully pushed" kernels push -p "build/$name"
done
