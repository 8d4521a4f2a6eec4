// Decoding: a few new tokens against a state. Each row of the state is read once, takes in the new keys one by one, is
// read by their queries, and written; so a step costs what moving the state costs.
#pragma once
#include "block.h"

namespace tsla {

constexpr int FEW = 16;  // tokens, up to which a pass over the state for every 4 is cheaper than a padded chunk
constexpr int PASS = 4;

// Features of one token, in the order of `Map`: flat; slope x_j; curve x_i x_j, over sqrt 2 where i = j.
inline void token_features(const float* x, int d, float flat, float slope, float curve, float* out) {
    *out++ = flat;
    for (int j = 0; j < d; j++) *out++ = slope * x[j];
    for (int i = 0; i < d; i++) {
        float own = curve * x[i];
        *out++ = own * ROOT_HALF * x[i];
        for (int j = i + 1; j < d; j++) *out++ = own * x[j];
    }
}

struct Few {
    const Job& job;
    const Call& c = job.c;

    static bool fits(const Call& c) { return c.causal && !c.direct && c.n <= FEW && c.kv0 && c.kv1; }

    // New tokens of one state: their features, values, and by how much the state decays before each.
    struct New {
        float *keys, *queries, *values, *keep;
    };

    // V vectors of each row of the state, the last of them `lanes` wide, take in N tokens; what their queries read goes
    // to `out` (N x step).
    template <int N, int V>
    static void columns(int f, int e, int lanes, int step, const float* before, float* after, const New& x,
                        float* out) {
        vec sum[N][V] = {}, value[N][V];
        for (int t = 0; t < N; t++)
            for (int v = 0; v < V; v++) value[t][v] = load(x.values + t * step + v * W);
        for (int p = 0; p < f; p++)
            for (int v = 0; v < V; v++) {
                int here = v + 1 < V ? W : lanes;
                long at = long(p) * e + v * W;
                vec s = !before ? vec{} : here == W ? load(before + at) : load_some(before + at, here);
                for (int t = 0; t < N; t++) {
                    s = s * x.keep[t] + x.keys[t * f + p] * value[t][v];
                    sum[t][v] += x.queries[t * f + p] * s;
                }
                std::memcpy(after + at, &s, here * sizeof(float));
            }
        for (int t = 0; t < N; t++)
            for (int v = 0; v < V; v++) store(out + t * step + v * W, sum[t][v]);
    }

    // Columns i ... i + V W of the state.
    template <int N, int V>
    void some(int i, const float* kv, float* kv_after, const New& x, float* out) const {
        int e = int(c.e);
        New here{x.keys, x.queries, x.values + i, x.keep};
        columns<N, V>(job.f, e, std::min(W, e - i - (V - 1) * W), job.e, kv ? kv + i : nullptr, kv_after + i, here,
                      out + i);
    }

    template <int N>
    void pass(const float* kv, const float* z, float* kv_after, float* z_after, const New& x, float* out,
              float* den) const {
        constexpr int WIDE = N <= 2 ? 4 : 2;  // vectors at a time: the more, the longer each run through memory
        int left = job.e / W;
        for (int i = 0; left >= WIDE; left -= WIDE, i += WIDE * W) some<N, WIDE>(i, kv, kv_after, x, out);
        int i = job.e - left * W;
        if constexpr (WIDE == 4)
            if (left >= 2) some<N, 2>(i, kv, kv_after, x, out), left -= 2, i += 2 * W;
        if (left) some<N, 1>(i, kv, kv_after, x, out);
        std::fill(den, den + N, 0.0f);
        for (int p = 0; p < job.f; p++) {
            float s = z ? z[p] : 0.0f;
            for (int t = 0; t < N; t++) {
                s = s * x.keep[t] + x.keys[t * job.f + p];
                den[t] += x.queries[t * job.f + p] * s;
            }
            z_after[p] = s;
        }
    }

    void unit(const Unit& u) const {
        Scratch& scratch = Scratch::own();
        int64_t n = c.n, r = u.queries;
        float *row = scratch.take(n * job.wide), *keys = scratch.take(n * job.f),
              *queries = scratch.take(r * n * job.f);
        float *values = scratch.take(n * job.e), *keep = scratch.take(n), *out = scratch.take(PASS * job.e), den[PASS];
        const uint8_t* mask = job.mask(u.b);
        job.rows(c.k, u.b, u.key_head, c.d).get(0, int(n), int(n), 1.0f, mask, row, job.wide);
        job.rows(c.v, u.b, u.key_head, c.e).get(0, int(n), int(n), 1.0f, mask, values, job.e);
        for (int64_t t = 0; t < n; t++) {
            float real = !mask || mask[t];
            token_features(row + t * job.wide, job.d, real, real, 1.0f, keys + t * job.f);
            keep[t] = c.gates ? std::exp(c.gates[u.index * n + t]) : 1.0f;
        }
        for (int64_t i = 0; i < r; i++) query_features(u, i, row, queries + i * n * job.f);
        const float *kv = c.kv0 ? c.kv0 + u.index * job.f * c.e : nullptr, *z = c.z0 ? c.z0 + u.index * job.f : nullptr;
        float *kv_after = c.kv1 + u.index * job.f * c.e, *z_after = c.z1 + u.index * job.f;
        for (int64_t t = 0, now; t < n; t += now) {  // with several heads to a state, it must be read after each token
            now = r > 1 ? 1 : std::min<int64_t>(PASS, n - t);
            New x{keys + t * job.f, queries + t * job.f, values + t * job.e, keep + t};
            switch (now) {
                case 1: pass<1>(kv, z, kv_after, z_after, x, out, den); break;
                case 2: pass<2>(kv, z, kv_after, z_after, x, out, den); break;
                case 3: pass<3>(kv, z, kv_after, z_after, x, out, den); break;
                default: pass<4>(kv, z, kv_after, z_after, x, out, den);
            }
            finish(job, u, 0, t, int(now), out, den);
            for (int64_t i = 1; i < r; i++) {
                read_state(kv_after, z_after, queries + (i * n + t) * job.f, out, den);
                finish(job, u, i, t, 1, out, den);
            }
            kv = kv_after, z = z_after;
        }
    }

    void query_features(const Unit& u, int64_t r, float* row, float* to) const {
        job.rows(c.q, u.b, u.first_query + r, c.d).get(0, int(c.n), int(c.n), c.scale, nullptr, row, job.wide);
        const float* shift = c.shift ? c.shift + job.query(u, r) * c.n : nullptr;
        for (int64_t t = 0; t < c.n; t++) {
            float m = shift ? shift[t] : 0.0f;
            token_features(row + t * job.wide, job.d, c.flat - c.slope * m + c.curve * 0.5f * m * m,
                           c.slope - c.curve * m, c.curve, to + t * job.f);
        }
    }

    void read_state(const float* kv, const float* z, const float* query, float* out, float* den) const {
        std::fill(out, out + job.e, 0.0f);
        *den = 0;
        for (int p = 0; p < job.f; p++) {
            for (int i = 0; i < c.e; i++) out[i] += query[p] * kv[p * c.e + i];
            *den += query[p] * z[p];
        }
    }

    void run() const {
        in_parallel(job, job.units(), [&](int64_t i) { unit(job.unit(i)); });
    }
};

}  // namespace tsla
