// The one product of matrices that everything is made of: a tile of C is held in registers while a sum runs over k.
#pragma once
#include <algorithm>
#include <array>

#include "vector.h"

namespace tsla {

// a(i, k) = a[i * row + k * step]: rows or columns of a matrix in memory, whichever the sum runs along.
struct Left {
    const float* data;
    long row, step;
};

template <int R, int V>
void tile(Left a, long depth, const float* b, long ldb, float* c, long ldc, bool add) {
    vec sum[R][V] = {};
    for (long k = 0; k < depth; k++) {
        vec right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) right[v] = load(b + k * ldb + v * W);
#pragma GCC unroll 24
        for (int r = 0; r < R; r++) {
            vec left = all(a.data[r * a.row + k * a.step]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] += left * right[v];
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
constexpr int most_rows(int vectors) { return (REGISTERS == 32 ? 24 : 12) / vectors; }

template <int V, std::size_t... R>
constexpr auto tiles_of(std::index_sequence<R...>) {
    return std::array{&tile<R + 1, V>...};
}

template <int V>
void strip(int rows, Left a, long depth, const float* b, long ldb, float* c, long ldc, bool add) {
    constexpr auto tiles = tiles_of<V>(std::make_index_sequence<most_rows(V)>{});
    for (int left = (rows + most_rows(V) - 1) / most_rows(V), done = 0; left > 0; left--) {
        int now = (rows - done + left - 1) / left;  // tiles alike in height
        tiles[now - 1]({a.data + done * a.row, a.row, a.step}, depth, b, ldb, c + done * ldc, ldc, add);
        done += now;
    }
}

// C (rows x columns) = or += A (rows x depth) B (depth x columns); columns is a multiple of W. What is added is summed up
// by itself first, so that a long sum is one of sums of blocks.
inline void product(int rows, int columns, long depth, Left a, const float* b, long ldb, float* c, long ldc, bool add) {
    for (int left = (columns / W + 3) / 4, done = 0; left > 0; left--) {
        int now = (columns / W - done + left - 1) / left;
        const float* right = b + done * W;
        float* to = c + done * W;
        switch (now) {
            case 1: strip<1>(rows, a, depth, right, ldb, to, ldc, add); break;
            case 2: strip<2>(rows, a, depth, right, ldb, to, ldc, add); break;
            case 3: strip<3>(rows, a, depth, right, ldb, to, ldc, add); break;
            default: strip<4>(rows, a, depth, right, ldb, to, ldc, add);
        }
        done += now;
    }
}

}  // namespace tsla
