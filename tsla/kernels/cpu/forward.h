// The forward pass: outputs o_i = sum_j w_ij v_j / sum_j w_ij, their denominators, and the state after the last key.
#pragma once
#include "few.h"

namespace tsla {

// A state in scratch memory, with rows padded to whole vectors.
struct Sums {
    State state;
    float* z;         // norm summed up, once `settle` was called
    uint32_t* pairs;  // and the matrix as pairs of bfloat16, where they are multiplied
    int f;

    Sums(const Job& job, Scratch& scratch)
        : state{scratch.take(padded(job.f) * job.e), job.e, scratch.take(padded(job.f) * W)},
          z(scratch.take(padded(job.f))),
          pairs(job.pairs ? scratch.take_pairs((job.f + 1) / 2 * job.e) : nullptr),
          f(job.f) {
        clear();
    }

    void clear() {
        std::fill(state.matrix, state.matrix + padded(f) * state.ld, 0.0f);
        std::fill(state.norm, state.norm + padded(f) * W, 0.0f);
    }

    void settle() {
        reduce(state.norm, f, z);
#ifdef __AVX512BF16__
        if (pairs) pair_rows(state.matrix, f, state.ld, pairs);
#endif
    }

    void add(const Job& job, const float* kv, const float* norm) {
        if (!kv) return;
        int e = int(job.c.e);
        for (int p = 0; p < f; p++) {
            for (int i = 0; i < e; i++) state.matrix[p * state.ld + i] += kv[p * e + i];
            state.norm[p * W] += norm[p];
        }
    }

    void times(float factor) {
        for (int i = 0; i < f * state.ld; i++) state.matrix[i] *= factor;
        for (int i = 0; i < padded(f) * W; i++) state.norm[i] *= factor;
    }

    void save(const Job& job, float* kv, float* norm) {
        if (!kv) return;
        settle();
        for (int p = 0; p < f; p++) std::copy_n(state.matrix + p * state.ld, job.c.e, kv + p * job.c.e);
        std::copy_n(z, f, norm);
    }
};

// States of units or of parts of them, as they lie in memory between two parallel loops: (count, f, e) and (count, f).
struct Partial {
    const Job& job;
    std::vector<float> kv, z;

    Partial(const Job& job, int64_t count) : job(job), kv(count * job.each_kv()), z(count * job.each_z()) {}

    float* kv_of(int64_t i) { return kv.data() + i * job.each_kv(); }
    float* z_of(int64_t i) { return z.data() + i * job.each_z(); }
};

inline float* at(float* p, int64_t index, int64_t each) {
    return p ? p + index * each : nullptr;
}
inline const float* at(const float* p, int64_t index, int64_t each) {
    return p ? p + index * each : nullptr;
}

struct Forward {
    const Job& job;
    const Call& c = job.c;

    // Sums of keys and values begin ... end, those of gated attention decayed to the end. Returns by how much they
    // decay.
    float keys_into(Sums& sums, const Unit& u, Range range, int tokens) const {
        Scratch& scratch = Scratch::own();
        Block block(job, job.keys, tokens, scratch);
        Gates gates(job, tokens, scratch);
        float *panel = scratch.take(PANEL * LINE), keep = 1;
        for (int64_t t = range.begin; t < range.end; t += tokens) {
            int count = int(std::min<int64_t>(tokens, range.end - t));
            load_keys(job, u, t, count, block);
            load_values(job, u, t, count, block, false);
            gates.load(job, u, t, count, tokens);
            write(sums, block, gates, panel);
            keep *= gates.keep;
        }
        return keep;
    }

    void write(Sums& sums, Block& block, const Gates& gates, float* panel) const {
        if (gates.on) {
            sums.times(gates.keep);
            scale_rows(block.values, block.tokens, job.e, gates.write);
        }
#ifdef __AVX512BF16__
        if (sums.pairs) {
            auto* values = reinterpret_cast<uint32_t*>(block.columns);  // which the forward pass leaves unused
            pair_rows(block.values, block.tokens, job.e, values);
            accumulate<Pairs>(job.keys, block.table, block.tokens, values, nullptr, sums.state,
                              reinterpret_cast<uint32_t*>(panel));
            return;
        }
#endif
        accumulate<Floats>(job.keys, block.table, block.tokens, block.values, gates.writes(), sums.state, panel);
    }

    // What queries read of a settled state.
    void look_up(const Sums& sums, const Block& block, float* out, float* den, float* panel) const {
#ifdef __AVX512BF16__
        if (sums.pairs) {
            read<Pairs>(job.queries, block.table, block.tokens, sums.pairs, job.e, sums.z, out, den,
                        reinterpret_cast<uint32_t*>(panel));
            return;
        }
#endif
        read<Floats>(job.queries, block.table, block.tokens, sums.state.matrix, job.e, sums.z, out, den, panel);
    }

    // What the queries of one head read of a settled state: bidirectional attention.
    void read_queries(const Sums& sums, const Unit& u, int64_t r, Range range) const {
        Scratch& scratch = Scratch::own();
        Block block(job, job.queries, BLOCK, scratch);
        float *panel = scratch.take(PANEL * LINE), *out = scratch.take(BLOCK * job.e), *den = scratch.take(BLOCK);
        for (int64_t t = range.begin; t < range.end; t += BLOCK) {
            int count = int(std::min<int64_t>(BLOCK, range.end - t));
            load_queries(job, u, r, t, count, block);
            look_up(sums, block, out, den, panel);
            finish(job, u, r, t, count, out, den);
        }
    }

    void bidirectional() const {
        int64_t units = job.units(), parts = parts_of(job, units, std::max(c.n * c.h / c.s, c.m), 2 * BLOCK);
        if (parts == 1) {
            in_parallel(job, units, [&](int64_t i) {
                Sums sums(job, Scratch::own());
                whole_keys(sums, i, 1, nullptr);
                Unit u = job.unit(i);
                for (int64_t r = 0; r < u.queries; r++) read_queries(sums, u, r, {0, c.n});
            });
            return;
        }
        Partial partial(job, units * parts);
        in_parallel(job, units * parts, [&](int64_t i) {
            Sums sums(job, Scratch::own());
            keys_into(sums, job.unit(i / parts), part_of(c.m, parts, i % parts, BLOCK), BLOCK);
            sums.save(job, partial.kv_of(i), partial.z_of(i));
        });
        Partial merged(job, units);
        in_parallel(job, units, [&](int64_t i) {
            Sums sums(job, Scratch::own());
            whole_keys(sums, i, parts, &partial);
            sums.save(job, merged.kv_of(i), merged.z_of(i));
        });
        in_parallel(job, units * parts, [&](int64_t i) {
            Sums sums(job, Scratch::own());
            sums.add(job, merged.kv_of(i / parts), merged.z_of(i / parts));
            sums.settle();
            Unit u = job.unit(i / parts);
            for (int64_t r = 0; r < u.queries; r++) read_queries(sums, u, r, part_of(c.n, parts, i % parts, BLOCK));
        });
    }

    // The state of unit `i`, from the keys or from sums of their parts, settled, and saved if it is asked for.
    void whole_keys(Sums& sums, int64_t i, int64_t parts, Partial* partial) const {
        sums.add(job, at(c.kv0, i, job.each_kv()), at(c.z0, i, job.each_z()));
        if (partial)
            for (int64_t p = 0; p < parts; p++)
                sums.add(job, partial->kv_of(i * parts + p), partial->z_of(i * parts + p));
        else keys_into(sums, job.unit(i), {0, c.m}, BLOCK);
        sums.settle();
        sums.save(job, at(c.kv1, i, job.each_kv()), at(c.z1, i, job.each_z()));
    }

    // Causal attention over a range, chunk by chunk; `sums` is the state before it and becomes the one after.
    void scan(Sums& sums, const Unit& u, Range range) const {
        Scratch& scratch = Scratch::own();
        Block keys(job, job.keys, CHUNK, scratch), queries(job, job.queries, CHUNK, scratch);
        Gates gates(job, CHUNK, scratch);
        float *panel = scratch.take(PANEL * LINE), *out = scratch.take(CHUNK * job.e), *den = scratch.take(CHUNK);
        for (int64_t t = range.begin; t < range.end; t += CHUNK) {
            int count = int(std::min<int64_t>(CHUNK, range.end - t));
            load_keys(job, u, t, count, keys);
            load_values(job, u, t, count, keys, false);
            gates.load(job, u, t, count, CHUNK);
            sums.settle();
            for (int64_t r = 0; r < u.queries; r++) {
                load_queries(job, u, r, t, count, queries);
                look_up(sums, queries, out, den, panel);
                if (gates.on) {
                    scale_rows(out, CHUNK, job.e, gates.read);
                    for (int i = 0; i < CHUNK; i++) den[i] *= gates.read[i];
                }
                direct(weigh_of(job, queries, keys, gates.sums(), gates.sums(), true), job.d, CHUNK, count, count,
                       queries.keys(job.wide), keys.keys(job.wide), keys.vectors(job.e), out, den, panel);
                finish(job, u, r, t, count, out, den);
            }
            write(sums, keys, gates, panel);
        }
    }

    void causal() const {
        int64_t units = job.units(), parts = parts_of(job, units, c.n, 8 * CHUNK);
        if (parts == 1) {
            in_parallel(job, units, [&](int64_t i) {
                Sums sums(job, Scratch::own());
                sums.add(job, at(c.kv0, i, job.each_kv()), at(c.z0, i, job.each_z()));
                scan(sums, job.unit(i), {0, c.n});
                sums.save(job, at(c.kv1, i, job.each_kv()), at(c.z1, i, job.each_z()));
            });
            return;
        }
        Partial before = starts(parts);
        in_parallel(job, units * parts, [&](int64_t i) {
            Sums sums(job, Scratch::own());
            sums.add(job, before.kv_of(i), before.z_of(i));
            scan(sums, job.unit(i / parts), part_of(c.n, parts, i % parts, CHUNK));
            if (i % parts == parts - 1)
                sums.save(job, at(c.kv1, i / parts, job.each_kv()), at(c.z1, i / parts, job.each_z()));
        });
    }

    // The state before each part of each unit.
    Partial starts(int64_t parts) const {
        int64_t units = job.units();
        Partial own(job, units * parts);
        std::vector<float> keep(units * parts);
        in_parallel(job, units * parts, [&](int64_t i) {
            if (i % parts == parts - 1) return;  // nobody starts after the last
            Sums sums(job, Scratch::own());
            keep[i] = keys_into(sums, job.unit(i / parts), part_of(c.n, parts, i % parts, CHUNK), CHUNK);
            sums.save(job, own.kv_of(i), own.z_of(i));
        });
        Partial before(job, units * parts);
        in_parallel(job, units, [&](int64_t u) {
            Sums sums(job, Scratch::own());
            sums.add(job, at(c.kv0, u, job.each_kv()), at(c.z0, u, job.each_z()));
            for (int64_t i = u * parts; i < (u + 1) * parts; i++) {
                sums.save(job, before.kv_of(i), before.z_of(i));
                if (i + 1 == (u + 1) * parts) break;
                if (c.gates) sums.times(keep[i]);
                sums.add(job, own.kv_of(i), own.z_of(i));
            }
        });
        return before;
    }

    // All pairs of a unit, block by block: the form for short sequences.
    void short_sequences() const {
        int64_t units = job.units(), parts = parts_of(job, units, c.n * c.h / c.s, BLOCK);
        in_parallel(job, units * parts, [&](int64_t i) { all_pairs(job.unit(i / parts), parts, i % parts); });
    }

    void all_pairs(const Unit& u, int64_t parts, int64_t part) const {
        Scratch& scratch = Scratch::own();
        std::vector<Block> keys = all_keys(job, u, false, scratch);
        Block queries(job, job.queries, BLOCK, scratch);
        float *panel = scratch.take(STRIP * LINE), *out = scratch.take(BLOCK * job.e), *den = scratch.take(BLOCK);
        const float* decay = decays(u, scratch);
        int64_t blocks = (c.n + BLOCK - 1) / BLOCK, items = blocks * u.queries;
        for (int64_t item = part; item < items; item += parts) {
            int64_t r = item / blocks, own = item % blocks, t = own * BLOCK;
            int count = int(std::min<int64_t>(BLOCK, c.n - t));
            load_queries(job, u, r, t, count, queries);
            std::fill(out, out + BLOCK * job.e, 0.0f);
            std::fill(den, den + BLOCK, 0.0f);
            for (int64_t j = 0; j < int64_t(keys.size()) && !(c.causal && j > own); j++)
                direct(weigh_of(job, queries, keys[j], decay ? decay + t : nullptr, decay ? decay + j * BLOCK : nullptr,
                                c.causal && j == own),
                       job.d, BLOCK, count, keys[j].count, queries.keys(job.wide), keys[j].keys(job.wide),
                       keys[j].vectors(job.e), out, den, panel);
            finish(job, u, r, t, count, out, den);
        }
    }

    // Running sums of a unit's log gates over the whole sequence, to the end of its last block; null without gates.
    const float* decays(const Unit& u, Scratch& scratch) const {
        if (!c.gates) return nullptr;
        int64_t length = (c.n + BLOCK - 1) / BLOCK * BLOCK;
        float* sums = scratch.take(length);
        double so_far = 0;
        for (int64_t t = 0; t < length; t++) sums[t] = float(so_far += t < c.n ? c.gates[u.index * c.n + t] : 0.0f);
        return sums;
    }

    void run() const {
        if (Few::fits(c)) Few{job}.run();
        else if (c.direct) short_sequences();
        else if (c.causal) causal();
        else bidirectional();
    }
};

}  // namespace tsla
