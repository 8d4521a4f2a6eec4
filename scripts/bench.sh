#!/bin/sh
# The comparison with the field's packages: tables and figures in docs/results/bench, and the README's table of them.
set -eu
cd "$(dirname "$0")/.."
out=docs/results/bench
tsla bench attention d=16,32,16 e=64,32,16 length=1024,4096 long=65536 "out=$out"
tsla bench attention causal=true compile= long=0 "out=$out/causal"
tsla bench attention heads=16 length=16384,65536 backward=true compile= long=0 only=auto,linear "out=$out/long"
tsla bench model "out=$out"
tsla bench decode "out=$out"
python scripts/bench_table.py
