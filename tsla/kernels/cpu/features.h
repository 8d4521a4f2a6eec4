// Features of order 2, and the three things that are done with them: sums over tokens, reading the sums, gradients.
//
// Each of the (d + 1)(d + 2) / 2 features of a token is the product of two rows of a small table of T tokens, laid out
// with the tokens side by side:
//     flat * one;   slope * x_j;   x_i * (x_i * curve / sqrt 2);   x_i * (x_j * curve) for i < j, row by row.
// A key has flat = slope = its mask and curve = 1. A query has the derivatives of its polynomial at the expansion
// point, so that the state of the keys serves every polynomial. Features are made some dozens at a time, in the first
// cache, and never written to memory.
#pragma once
#include <vector>

#include "product.h"

namespace tsla {

constexpr int PANEL = 48;  // features that are made at a time
constexpr float ROOT_HALF = 0.70710678f;

inline int feature_count(int d) {
    return (d + 1) * (d + 2) / 2;
}

enum : int { ONE = 0, FLAT = 1, SLOPE = 2, X = 3 };  // rows of the table, before those of x

// Which two rows make each feature; curve = 1 lets both factors of a product be x itself.
struct Map {
    int d, wide, count, scaled, diagonal, rows;
    float curve;
    std::vector<int> left, right;

    Map(int d, float curve) : d(d), wide(padded(d)), count(feature_count(d)), curve(curve) {
        scaled = curve == 1.0f ? X : X + wide;
        diagonal = scaled + wide;
        rows = diagonal + d;
        left.push_back(FLAT), right.push_back(ONE);
        for (int j = 0; j < d; j++) left.push_back(SLOPE), right.push_back(X + j);
        for (int i = 0; i < d; i++)
            for (int j = i; j < d; j++) left.push_back(X + i), right.push_back(j == i ? diagonal + i : scaled + j);
    }
};

// The table of `tokens` tokens whose rows X ... are there: fills in what is made of them.
inline void complete(const Map& map, float* table, int tokens) {
    for (int t = 0; t < tokens; t++) table[ONE * tokens + t] = 1;
    for (int i = 0; i < map.d; i++)
        for (int t = 0; t < tokens; t += W) {
            vec x = load(table + (X + i) * tokens + t);
            if (map.scaled != X) store(table + (map.scaled + i) * tokens + t, x * map.curve);
            store(table + (map.diagonal + i) * tokens + t, x * (map.curve * ROOT_HALF));
        }
}

// Sums over tokens: matrix (padded features x ld) of feature * value, and per feature W partial sums of feature *
// weight.
struct State {
    float* matrix;
    int ld;
    float* norm;  // (padded features x W), see `reduce`
};

// sums (padded features) = norm summed over its W parts.
inline void reduce(const float* norm, int features, float* sums) {
    for (int p = 0; p < features; p += W) {
        vec x[W];
        for (int i = 0; i < W; i++) x[i] = load(norm + (p + i) * W);
        store(sums + p, sum_of_rows(x));
    }
}

// state += features^T values;  norm += features^T weight (null: 1).  values: (tokens x state.ld), as products of Of
// take them. Whatever these are, what is summed up stays float.
template <class Of>
void accumulate(const Map& map, const float* table, int tokens, const typename Of::Element* values, const float* weight,
                State state, typename Of::Element* panel) {
    for (int first = 0; first < map.count; first += PANEL) {
        int count = std::min(PANEL, map.count - first);
        for (int p = 0; p < count; p++) {
            const float *a = table + map.left[first + p] * tokens, *b = table + map.right[first + p] * tokens;
            float* norm = state.norm + (first + p) * W;
            vec sum{};
            for (int t = 0; t < tokens; t += W) {
                vec feature = load(a + t) * load(b + t);
                Of::put_along(panel + (p * LINE + t) / Of::STEPS, feature);
                sum += weight ? feature * load(weight + t) : feature;
            }
            store(norm, load(norm) + sum);
        }
        product(count, state.ld, tokens / Of::STEPS, by_lines(panel), values, state.ld, state.matrix + first * state.ld,
                state.ld, true);
    }
}

// out (tokens x ld) = features matrix;  sums (tokens) = features norm, norm (features).
template <class Of>
void read(const Map& map, const float* table, int tokens, const typename Of::Element* matrix, int ld, const float* norm,
          float* out, float* sums, typename Of::Element* panel) {
    for (int first = 0; first < map.count; first += PANEL) {
        int count = std::min(PANEL, map.count - first);
        for (int t = 0; t < tokens; t += W) {
            vec sum = first ? load(sums + t) : vec{};
            for (int p = 0; p < count; p += Of::STEPS) {
                vec feature[Of::STEPS] = {};
                for (int i = 0; i < std::min(Of::STEPS, count - p); i++) {
                    int at = first + p + i;
                    feature[i] = load(table + map.left[at] * tokens + t) * load(table + map.right[at] * tokens + t);
                    sum += feature[i] * norm[at];
                }
                Of::put_across(panel + p / Of::STEPS * tokens + t, feature);
            }
            store(sums + t, sum);
        }
        product(tokens, ld, (count + Of::STEPS - 1) / Of::STEPS, side_by_side(panel, tokens),
                matrix + first / Of::STEPS * ld, ld, out, ld, first > 0);
    }
}

// Gradient of the table's rows, into `dtable` (zeroed here), of sum_t values_t . (matrix^T features_t) + weight_t (norm
// . features_t), with the values (ld x tokens) transposed and weight null for 1; `turned` (ld x PANEL) is room for some
// rows of the matrix as columns.
inline void pull(const Map& map, const float* table, int tokens, const float* values, const float* weight,
                 const float* matrix, int ld, const float* norm, float* dtable, float* panel, float* turned) {
    std::fill(dtable, dtable + map.rows * tokens, 0.0f);
    for (int first = 0; first < map.count; first += PANEL) {
        int count = std::min(PANEL, map.count - first);
        transpose(matrix + first * ld, ld, padded(count), ld, turned, PANEL);
        product(count, tokens, ld, side_by_side(turned, PANEL), values, tokens, panel, tokens, false);
        for (int p = 0, end; p < count; p = end) {  // a run of features with one left row
            int left = map.left[first + p];
            for (end = p + 1; end < count && map.left[first + end] == left; end++) {
            }
            for (int t = 0; t < tokens; t += W) {
                vec x = load(table + left * tokens + t), sum = load(dtable + left * tokens + t);
                vec w = weight ? load(weight + t) : all(1.0f);
                for (int at = p; at < end; at++) {
                    long right = map.right[first + at] * tokens + t;
                    vec grad = load(panel + at * tokens + t) + w * norm[first + at];
                    sum += grad * load(table + right);
                    store(dtable + right, load(dtable + right) + grad * x);
                }
                store(dtable + left * tokens + t, sum);
            }
        }
    }
    for (int i = 0; i < map.d; i++)
        for (int t = 0; t < tokens; t += W) {
            float* at = dtable + (X + i) * tokens + t;
            vec sum = load(at) + load(dtable + (map.diagonal + i) * tokens + t) * (map.curve * ROOT_HALF);
            if (map.scaled != X) sum += load(dtable + (map.scaled + i) * tokens + t) * map.curve;
            store(at, sum);
        }
}

}  // namespace tsla
