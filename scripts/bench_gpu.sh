#!/bin/sh
# Attention on one NVIDIA GPU beside SDPA, FlexAttention and flash-linear-attention, in tables and figures under
# docs/results/bench_gpu/<card>. Every implementation is checked in float64 before it is timed; the first command alone
# (some minutes, most of them compiling) tells whether all of them run here.
set -eu
cd "$(dirname "$0")/.."
card=$(python -c 'import torch; print(torch.cuda.get_device_name())' | tr -cs 'A-Za-z0-9.\n' '-')
out="docs/results/bench_gpu/$card"

# Check: everybody, both directions and passes, short.
for dtype in bfloat16 float16 float32; do
    tsla bench attention device=cuda "dtype=$dtype" causal=false,true length=512 compile= long=0 seconds=0 "out=$out/check/$dtype"
done

# Everybody against the length, at the widths of Based and its neighbours.
for dtype in bfloat16 float16 float32; do
    tsla bench attention device=cuda "dtype=$dtype" d=16,16,32 e=64,128,64 heads=16 causal=false,true length=1024,2048,4096,8192,16384,32768 long=65536 seconds=1 "out=$out/$dtype"
done

# Exact forms go with the square of the length; what is linear goes on to a million tokens.
for dtype in bfloat16 float16 float32; do
    tsla bench attention device=cuda "dtype=$dtype" d=16,32 e=64,64 causal=false,true length=65536,262144,1048576 compile= long=0 seconds=1 only=auto "out=$out/long/$dtype"
done

# The kernels of exact attention a little beyond, for the point at which each is overtaken.
tsla bench attention device=cuda dtype=bfloat16 d=16 e=64 heads=16 causal=false,true length=32768,65536,131072 compile= long=0 seconds=1 only=auto,sdpa-flash,flex,fla-based "out=$out/crossing"

# Widths of heads, groups of queries, and a batch of short rows.
tsla bench attention device=cuda dtype=bfloat16 d=8,12,16,20,24,32,48,64 e=64,64,64,64,64,64,64,64 heads=16 causal=false,true length=4096,16384 compile= long=0 seconds=1 only=auto,linear,sdpa,sdpa-flash,flex,fla-based "out=$out/widths"
tsla bench attention device=cuda dtype=bfloat16 d=16 e=64 heads=16 kv_heads=1 causal=false,true length=4096,16384,65536 compile= long=0 seconds=1 only=auto,sdpa,sdpa-flash,flex "out=$out/groups"
tsla bench attention device=cuda dtype=bfloat16 d=16 e=64 heads=16 batch=32 causal=false,true length=64,128,256,512,1024,2048 compile= long=0 seconds=1 only=auto,direct,linear,sdpa,sdpa-flash,flex,fla-based "out=$out/short"
