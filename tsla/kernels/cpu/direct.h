// The direct form on one block of queries and one of keys: their weights fill a strip of 16 queries at a time and are
// used at once. Between blocks nothing is kept, so no n x m matrix exists; of a block on the diagonal of causal
// attention, what lies above it is left out.
#pragma once
#include "product.h"

namespace tsla {

constexpr int STRIP = 16;

inline int strips(int count) {
    return (count + STRIP - 1) / STRIP * STRIP;
}

// The weight of a pair of tokens: P(s) = flat + slope s + curve s^2 / 2 of the score s - shift, times decay and mask.
struct Weigh {
    float flat, slope, curve;
    const float* shift;              // of each query; null: 0
    const float* mask;               // 1 or 0 for each key; null: 1
    const float *decay, *key_decay;  // running sums of log gates, of queries and of keys; null: none
    bool causal;                     // queries and keys are the same tokens, and later keys have weight 0

    int keys(int first, int count) const { return causal ? std::min(first + STRIP, count) : count; }

    // Scores of queries first ... first + STRIP, in place, become weights, and `slopes` (if not null) their
    // derivatives. sums[i] += weights of query i.
    void operator()(int first, int keys, float* scores, float* slopes, int ld, float* sums) const {
        for (int group = 0; group < STRIP; group += W) {
            vec rows[W];
            for (int r = 0; r < W; r++) {
                int i = group + r;
                rows[r] = one_row(first + i, keys, scores + i * ld, slopes ? slopes + i * ld : nullptr);
            }
            if (sums) store(sums + first + group, load(sums + first + group) + sum_of_rows(rows));
        }
    }

  private:
    vec one_row(int query, int keys, float* scores, float* slopes) const {
        vec sum{};
        for (int j = 0; j < keys; j += W) {
            vec s = load(scores + j);
            if (shift) s -= shift[query];
            vec w = (s * (curve * 0.5f) + slope) * s + flat, ds = s * curve + slope;
            if (mask || decay) {
                vec factor = mask ? load(mask + j) : all(1.0f);
                if (decay) factor *= exp_negative(-distance(decay[query] - load(key_decay + j)));
                w *= factor, ds *= factor;
            }
            if (causal && j + W > query + 1) {
                ivec later = lanes() + j > query;
                w = later ? vec{} : w, ds = later ? vec{} : ds;
            }
            store(scores + j, w);
            if (slopes) store(slopes + j, ds);
            sum += w;
        }
        return sum;
    }

    static vec distance(vec x) { return x < 0.0f ? -x : x; }
};

// One block of tokens as the direct form reads it: rows, and columns (transposed).
struct Tokens {
    const float* rows;     // (tokens x ld)
    const float* columns;  // (ld x tokens)
    int ld;
};

// out += weights values, sums += weights, for the first `queries` and `seen` keys of two blocks of `tokens`, both
// rounded up to strips.  scratch: STRIP lines.
inline void direct(const Weigh& weigh, int d, int tokens, int queries, int seen, Tokens q, Tokens k, Tokens v,
                   float* out, float* sums, float* scratch) {
    for (int first = 0; first < queries; first += STRIP) {
        int keys = weigh.keys(first, strips(seen));
        product(STRIP, keys, d, side_by_side(q.columns + first, tokens), k.columns, tokens, scratch, LINE, false);
        weigh(first, keys, scratch, nullptr, LINE, sums);
        product(STRIP, v.ld, keys, by_lines(scratch), v.rows, v.ld, out + first * v.ld, v.ld, true);
    }
}

// Gradients of the above, given those of out (g) and of sums (dsums), added to dq, dk, dv (rows), and if not null to
// dones (of each key's weight in `sums`) and dshift.  scratch: 3 x STRIP lines.
inline void direct_backward(const Weigh& weigh, int d, int tokens, int queries, int seen, Tokens q, Tokens k, Tokens v,
                            Tokens g, const float* dsums, float* dq, float* dk, float* dv, float* dones, float* dshift,
                            float* scratch) {
    float *slopes = scratch + STRIP * LINE, *dweights = slopes + STRIP * LINE;
    for (int first = 0; first < queries; first += STRIP) {
        int keys = weigh.keys(first, strips(seen));
        const float *own_q = q.rows + first * q.ld, *grads = g.rows + first * g.ld;
        product(STRIP, keys, d, side_by_side(q.columns + first, tokens), k.columns, tokens, scratch, LINE, false);
        weigh(first, keys, scratch, slopes, LINE, nullptr);
        product(STRIP, keys, v.ld, side_by_side(g.columns + first, tokens), v.columns, tokens, dweights, LINE, false);
        for (int group = 0; group < STRIP; group += W) {
            vec rows[W];
            for (int r = 0; r < W; r++) {
                long row = (group + r) * LINE;
                float own = dsums[first + group + r];
                rows[r] = vec{};
                for (int j = 0; j < keys; j += W) {
                    vec ds = (load(dweights + row + j) + own) * load(slopes + row + j);
                    store(slopes + row + j, ds);
                    rows[r] += ds;
                    if (dones) store(dones + j, load(dones + j) + load(scratch + row + j) * own);
                }
            }
            if (dshift) store(dshift + first + group, load(dshift + first + group) - sum_of_rows(rows));
        }
        product(STRIP, q.ld, keys, by_lines(slopes), k.rows, k.ld, dq + first * q.ld, q.ld, true);
        product(keys, k.ld, STRIP, side_by_side(slopes, LINE), own_q, q.ld, dk, k.ld, true);
        product(keys, v.ld, STRIP, side_by_side(scratch, LINE), grads, g.ld, dv, v.ld, true);
    }
}

}  // namespace tsla
