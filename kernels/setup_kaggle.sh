#!/usr/bin/env bash
# The interactive way, in a Kaggle notebook with the network on:
#   !git clone REPOSITORY landfold
#   !bash landfold/kernels/setup_kaggle.sh
# Installs what the image lacks and leaves its torch and numpy alone, says which GPUs and mounts there are and what to
# do next. Runs elsewhere too, and says so. PYTHON chooses another Python, TASK another task (biomass) for the lines.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
task=${TASK:-biomass}
inputs=${KAGGLE_INPUT:-/kaggle/input}
cd "$root"

if [ -d "$inputs" ]; then echo "Kaggle: yes"; else echo "Kaggle: no, there is no $inputs; the rest is done all the same"; fi

echo "Python: $("$python" -V 2>&1 | cut -d' ' -f2)"
freeze=$(mktemp)
trap 'rm -f "$freeze" "$freeze.kept" "$freeze.missing"' EXIT
"$python" -m pip freeze --disable-pip-version-check >"$freeze" 2>/dev/null
"$python" - "$freeze" <<'END'
import sys
from pathlib import Path

from common.errors import run_script
from kernels.wheels import KEPT, lacking, read_image


def main(words):
    freeze = Path(words[0])
    image = read_image(freeze)
    Path(f"{freeze}.missing").write_text("".join(f"{one}\n" for one in lacking(image)))
    kept = {name: image[name] for name in sorted(KEPT) if image.get(name)}
    Path(f"{freeze}.kept").write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))


sys.exit(run_script(main))
END
if [ -s "$freeze.missing" ]; then
    echo "installing: $(tr '\n' ' ' <"$freeze.missing")"
    "$python" -m pip install -q --disable-pip-version-check -r "$freeze.missing" -c "$freeze.kept" || {
        echo "error: pip could not install them; switch the notebook's network on (Settings, Internet)" >&2
        exit 2
    }
else
    echo "installed: all of requirements.txt"
fi

gpus=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null || true)
if [ -z "$gpus" ]; then
    echo "GPU: none; choose GPU T4 x2 in the notebook's settings, or stay with small models"
else
    sed 's/^/GPU: /' <<<"$gpus"
    case $gpus in *P100*) echo "GPU: current torch has no code for a P100; choose GPU T4 x2" ;; esac
fi

if [ -d "$inputs" ]; then
    "$python" - "$inputs" <<'END'
import sys
from pathlib import Path

from kernels.mounts import describe, walk

root = Path(sys.argv[1])
print("\n".join(describe(root, walk(root))))
END
fi

processes=$(grep -c . <<<"$gpus" || true)
launcher=python
[ "$processes" -lt 2 ] || launcher="torchrun --nproc-per-node $processes --"
for recipe in recipes/"$task"-{finetune,baseline,v2.5,none}.yaml; do [ ! -f "$recipe" ] || break; done
[ -f "$recipe" ] || { echo "error: TASK=$task: no such task; there are $(ls recipes | sed -n 's/-.*//p' | sort -u | xargs)" >&2; exit 2; }
cat <<END
Next, in $root (the scripts find a mounted competition by themselves):
  python make_folds.py --task $task --out folds.csv
  $launcher train.py --config $recipe --folds folds.csv --run $task
  python infer.py --runs $task --out preds/$task
  python kernels/build.py --dataset weights $task --user NAME      # to download, or kernels/push.sh --dataset
END
