#!/bin/sh
# The comparison with the field's packages: tables and figures in docs/results/bench, and the README's table of them.
set -eu
cd "$(dirname "$0")/.."
out=docs/results/bench
tsla bench attention d=16,32,16 e=64,32,16 length=1024,4096 long=65536 "out=$out"
tsla bench attention d=16 e=64 length=4096 compile= long=0 memory=false only=auto,taylorshift,tsla-0.2.0 "out=$out/alone"
tsla bench attention causal=true compile= long=0 "out=$out/causal"
tsla bench attention d=16,16 e=16,64 batch=4 length=32,64,128,256 compile= long=0 memory=false only=auto,sdpa "out=$out/short"
tsla bench attention heads=16 length=16384,65536 backward=true compile= long=0 only=auto,linear "out=$out/long"
tsla bench attention heads=16 length=16384,65536 backward=true causal=true compile= long=0 only=auto "out=$out/long/causal"
tsla bench attention d=8,12,20,24,48,64,16,16,16 e=64,64,64,64,64,64,8,40,96 length=2048 compile= long=0 only=auto,linear "out=$out/odd"
tsla bench model only=taylor,taylor-linear,softmax,tsla-0.2.0,tsla-0.2.0-packed "out=$out"
tsla bench model only=taylor,softmax,tsla-0.2.0,tsla-0.2.0-packed batch=4 length=2048 loop=0 "out=$out/batch"
tsla bench decode "out=$out"
python scripts/bench_table.py
