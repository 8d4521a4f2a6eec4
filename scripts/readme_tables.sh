#!/usr/bin/env bash
# The runs behind the README's two accuracy tables, one after the other: about an hour on two cores.
# A run that has finished is left alone and one that was stopped goes on, so the script can be started again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/readme

run() { # name of the run, then its options
    local dir=$out/$1
    shift
    if [ -e "$dir/config.yaml" ]; then
        .venv/bin/tsla train resume="$dir"
    else
        .venv/bin/tsla train "$@" run_dir="$dir"
    fi
}

for task in digits quickstart; do
    for seed in 0 1 2; do
        run $task-taylor-$seed experiment=$task seed=$seed
        run $task-taylor-linear-$seed experiment=$task mixer.impl=linear seed=$seed
        run $task-softmax-$seed experiment=$task mixer=softmax seed=$seed
    done
    run $task-window-0 experiment=$task mixer=window mixer.window=8
    run $task-none-0 experiment=$task mixer=none model.short_conv=0 # the control row
done
run listops-taylor-linear experiment=listops trainer.max_steps=200 mixer.impl=linear
