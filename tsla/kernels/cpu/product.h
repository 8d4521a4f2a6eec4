// The one product of matrices that everything is made of: a tile of C is held in registers while a sum runs over k.
#pragma once
#include <algorithm>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vector.h"

namespace tsla {

// What a product multiplies: floats, or pairs of bfloat16 that follow each other in the sum, two steps of it at once.
struct Floats {
    using Element = float;
    using Vector = vec;
    static constexpr int STEPS = 1;
    static Vector get(const float* p) { return load(p); }
    static Vector spread(float x) { return all(x); }
    static vec add(vec sum, Vector left, Vector right) { return sum + left * right; }
    static void put_along(float* p, vec x) { store(p, x); }           // W steps of one row of the left side
    static void put_across(float* p, const vec* x) { store(p, *x); }  // W rows of it, at STEPS steps
};

#ifdef __AVX512BF16__
struct Pairs {
    using Element = uint32_t;
    using Vector = __m512bh;
    static constexpr int STEPS = 2;
    static Vector get(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static Vector spread(uint32_t x) { return (__m512bh)_mm512_set1_epi32(int(x)); }
    static vec add(vec sum, Vector left, Vector right) { return (vec)_mm512_dpbf16_ps((__m512)sum, left, right); }
    static void put_along(uint32_t* p, vec x) {
        __m256bh half = _mm512_cvtneps_pbh((__m512)x);
        std::memcpy(p, &half, sizeof half);
    }
    static void put_across(uint32_t* p, const vec* x) {  // the first of each pair in the lower half
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x[0]));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x[1]));
        _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
};

// Rows 2 i and 2 i + 1 of a matrix become row i of pairs; an odd last one is paired with zeros.
inline void pair_rows(const float* rows, int count, int ld, uint32_t* pairs) {
    for (int r = 0; r < count; r += 2, pairs += ld)
        for (int i = 0; i < ld; i += W) {
            vec both[] = {load(rows + r * ld + i), r + 1 < count ? load(rows + (r + 1) * ld + i) : vec{}};
            Pairs::put_across(pairs + i, both);
        }
}
#endif

constexpr int LINE =
    64;  // elements from one row to the next in what tiles read by rows: a number known to the compiler

// The left side, a(i, k) = data[i * ROW + k * step]: its rows stand side by side, or each is a line.
template <class Of, int ROW>
struct Left {
    const typename Of::Element* data;
    long step;
};

inline Left<Floats, 1> side_by_side(const float* data, long step) {
    return {data, step};
}
inline Left<Floats, LINE> by_lines(const float* data) {
    return {data, 1};
}
#ifdef __AVX512BF16__
inline Left<Pairs, 1> side_by_side(const uint32_t* data, long step) {
    return {data, step};
}
inline Left<Pairs, LINE / 2> by_lines(const uint32_t* data) {
    return {data, 1};
}
#endif

template <int R, int V, class Of, int ROW>
[[gnu::noinline]] void tile(Left<Of, ROW> a, long depth, const typename Of::Element* b, long ldb, float* c, long ldc,
                            bool add) {
    vec sum[R][V] = {};
    for (long k = 0; k < depth; k++) {
        typename Of::Vector right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) right[v] = Of::get(b + k * ldb + v * W);
#pragma GCC unroll 24
        for (int r = 0; r < R; r++) {
            typename Of::Vector left = Of::spread(a.data[r * ROW + k * a.step]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] = Of::add(sum[r][v], left, right[v]);
        }
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            float* at = c + r * ldc + v * W;
            store(at, add ? load(at) + sum[r][v] : sum[r][v]);
        }
}

// Rows of a tile of V vectors: its sums, V of the right side and one of the left fill the registers.
constexpr int most_rows(int vectors) {
    return (REGISTERS == 32 ? 24 : 12) / vectors;
}
constexpr int fewer(int rows) {
    return rows > 16 ? 16 : rows > 12 ? 12 : rows > 8 ? 8 : rows > 6 ? 6 : rows > 4 ? 4 : rows / 2;
}

template <int R, int V, class Of, int ROW>
void strip(int rows, Left<Of, ROW> a, long depth, const typename Of::Element* b, long ldb, float* c, long ldc,
           bool add) {
    for (; rows >= R; rows -= R, a.data += R * ROW, c += R * ldc) tile<R, V>(a, depth, b, ldb, c, ldc, add);
    if constexpr (R > 1)
        if (rows > 0) strip<fewer(R), V>(rows, a, depth, b, ldb, c, ldc, add);
}

// C (rows x columns) = or += A (rows x depth) B (depth x columns); columns is a multiple of W. What is added is summed
// up by itself first, so that a long sum is one of sums of blocks.
template <class Of, int ROW>
[[gnu::noinline]] void product(int rows, int columns, long depth, Left<Of, ROW> a, const typename Of::Element* b,
                               long ldb, float* c, long ldc, bool add) {
    for (int left = (columns / W + 3) / 4, done = 0; left > 0; left--) {
        int now = (columns / W - done + left - 1) / left;
        const typename Of::Element* right = b + done * W;
        float* to = c + done * W;
        switch (now) {
            case 1: strip<most_rows(1), 1>(rows, a, depth, right, ldb, to, ldc, add); break;
            case 2: strip<most_rows(2), 2>(rows, a, depth, right, ldb, to, ldc, add); break;
            case 3: strip<most_rows(3), 3>(rows, a, depth, right, ldb, to, ldc, add); break;
            default: strip<most_rows(4), 4>(rows, a, depth, right, ldb, to, ldc, add);
        }
        done += now;
    }
}

}  // namespace tsla
