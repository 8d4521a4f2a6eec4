// What Python hands over: sizes, coefficients and where the tensors lie. call.py has the same struct.
#pragma once
#include <cstdint>

namespace tsla {

struct Strided {  // (batch, heads, tokens, width) with the width side by side; strides in elements; half: bfloat16
    void* data;
    int64_t batch, head, token, half;
};

// Letters as in the Python code: b batch, h query heads, g key heads, s states (g, or h with gates), n queries, m keys,
// f features. A null pointer is an option that is not used. All that is not Strided is contiguous float32.
struct Call {
    int64_t b, h, g, s, n, m, d, e;
    int64_t causal, direct, normalize, threads;
    float scale, flat, slope, curve;  // weight of a pair: flat + slope x + curve x^2 / 2 of x = scale q.k - shift
    Strided q, k, v, out, dout;
    const uint8_t* mask;             // (b, m)
    const float *gates, *shift;      // (b, s, n) log decay;  (b, h, n)
    float* den;                      // (b, h, n) sum of the weights of a query
    const float *kv0, *z0;           // (b, s, f, e), (b, s, f): the state before
    float *kv1, *z1;                 // and after; the backward pass reads it where attention is bidirectional
    const float *dden, *dkv1, *dz1;  // gradients that come in
    float *dq, *dk, *dv;             // and go out: (b, h, n, d), (b, s, m, d), (b, s, m, e)
    float *dones, *dshift;           // (b, s, m) of each key's part in all `den`;  (b, h, n)
    float* dsums;                    // (b, h, n) of a common factor of a query's sums and denominator
    float *dkv0, *dz0;
};

}  // namespace tsla
