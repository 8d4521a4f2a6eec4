// The backward pass. Features, weights and states are made again; of the forward pass only its result is needed.
//
// With G_i = do_i / D_i and dD_i = -(do_i . o_i) / D_i:  dS = sum_i psi(q_i) [G_i, dD_i];  dpsi_i = S G_i + z dD_i;
// dphi_j = dS v_j + dz;  dv_j = dS^T phi_j.  Causal, the same holds of the state between chunks, one sweep from the
// left for S and one from the right for dS; inside a chunk it is the direct form's.
#pragma once
#include "forward.h"

namespace tsla {

struct Backward {
    const Job& job;
    const Call& c = job.c;

    // Queries of a block with what comes back to them: G in `values` and `columns`, dD in `dsums`.
    void load_gradient(const Unit& u, int64_t r, int64_t begin, int count, Block& to, float* dsums) const {
        load_queries(job, u, r, begin, count, to);
        job.rows(c.dout, u.b, u.first_query + r, c.e).get(begin, count, to.tokens, 1.0f, nullptr, to.values, job.e);
        const float *den = c.den + job.query(u, r) * c.n + begin, *dden = at(c.dden, job.query(u, r), c.n);
        Rows out = job.rows(c.out, u.b, u.first_query + r, c.e);
        float* own = to.columns;  // the output, until the gradient's columns take its place
        if (c.normalize || c.dsums) out.get(begin, count, to.tokens, 1.0f, nullptr, own, job.e);
        for (int group = 0; group < to.tokens; group += W) {
            vec rows[W], inverse{};
            for (int r = 0; r < W; r++) {
                int t = group + r;
                float* g = to.values + t * job.e;
                dsums[t] = dden && t < count ? dden[begin + t] : 0.0f;
                inverse[r] = !c.normalize || t >= count || den[t] == 0 ? 0.0f : inverse_of(den[t]);
                rows[r] = vec{};
                for (int i = 0; c.normalize && i < job.e; i += W) {
                    rows[r] += load(g + i) * load(own + t * job.e + i);
                    store(g + i, load(g + i) * inverse[r]);
                }
            }
            if (c.normalize) store(dsums + group, load(dsums + group) - sum_of_rows(rows) * inverse);
        }
        if (c.dsums) factor_gradient(u, r, begin, count, to, dsums, own);
        turn(to.values, to.tokens, job.e, to.columns);
    }

    // The gradient of a factor of both sums and denominator of each query: N . G + D dD. Where the sums are divided
    // this is what rounding leaves; with it the gradients of gates are as exact as those of keys and values, which it
    // balances.
    void factor_gradient(const Unit& u, int64_t r, int64_t begin, int count, const Block& q, const float* dsums,
                         const float* out) const {
        for (int t = 0; t < count; t++) {
            int64_t at = job.query(u, r) * c.n + begin + t;
            double sum = 0;
            for (int i = 0; i < job.e; i++) sum += double(out[t * job.e + i]) * q.values[t * job.e + i];
            c.dsums[at] = float(c.normalize ? c.den[at] * (sum + dsums[t]) : sum + double(c.den[at]) * dsums[t]);
        }
    }

    // Rows of the gradient of x from that of its table, times `factor`, added to `rows`.
    void add_rows(const float* dtable, int tokens, float* rows, float* scratch) const {
        transpose(dtable + X * tokens, tokens, job.wide, tokens, scratch, job.wide);
        for (int i = 0; i < tokens * job.wide; i += W) store(rows + i, load(rows + i) + load(scratch + i));
    }

    // The shift's gradient from those of the polynomial's derivatives: dP(-m)/dm = -P'(-m), dP'(-m)/dm = -P''.
    void add_shift(const Block& queries, const float* dtable, float* dshift) const {
        int tokens = queries.tokens;
        for (int t = 0; t < tokens; t++)
            dshift[t] -=
                dtable[FLAT * tokens + t] * queries.table[SLOPE * tokens + t] + dtable[SLOPE * tokens + t] * c.curve;
    }

    // Scratch of one thread for a block of queries and one of keys.
    struct Work {
        Block queries, keys;
        float *dsums, *panel, *columns, *dtable, *dx, *turned, *dk, *dv, *dones, *dshift;

        Work(const Job& job, int tokens, Scratch& s)
            : queries(job, job.queries, tokens, s),
              keys(job, job.keys, tokens, s),
              dsums(s.take(tokens)),
              panel(s.take(PANEL * LINE)),
              columns(s.take(PANEL * job.e)),
              dtable(s.take(std::max(job.queries.rows, job.keys.rows) * tokens)),
              dx(s.take(tokens * job.wide)),
              turned(s.take(tokens * job.wide)),
              dk(s.take(tokens * job.wide)),
              dv(s.take(tokens * job.e)),
              dones(s.take(tokens)),
              dshift(s.take(tokens)) {}
    };

    // Bidirectional: queries of a range, reading `sums`, add to `grads` and have their own gradients written.
    void pull_queries(const Sums& sums, Sums& grads, const Unit& u, int64_t r, Range range) const {
        Scratch& scratch = Scratch::own();
        Work w(job, BLOCK, scratch);
        for (int64_t t = range.begin; t < range.end; t += BLOCK) {
            int count = int(std::min<int64_t>(BLOCK, range.end - t));
            load_gradient(u, r, t, count, w.queries, w.dsums);
            accumulate<Floats>(job.queries, w.queries.table, BLOCK, w.queries.values, w.dsums, grads.state, w.panel);
            pull(job.queries, w.queries.table, BLOCK, w.queries.columns, w.dsums, sums.state.matrix, job.e, sums.z,
                 w.dtable, w.panel, w.columns);
            transpose(w.dtable + X * BLOCK, BLOCK, job.wide, BLOCK, w.dx, job.wide);
            put(c.dq, job.query(u, r) * c.n + t, count, c.d, c.scale, w.dx, job.wide);
            if (!c.shift) continue;
            std::fill(w.dshift, w.dshift + BLOCK, 0.0f);
            add_shift(w.queries, w.dtable, w.dshift);
            std::copy_n(w.dshift, count, c.dshift + job.query(u, r) * c.n + t);
        }
    }

    // Gradients of keys and values from that of their sums, which is settled.
    void pull_keys(const Sums& grads, const Unit& u, Range range) const {
        Scratch& scratch = Scratch::own();
        Work w(job, BLOCK, scratch);
        for (int64_t t = range.begin; t < range.end; t += BLOCK) {
            int count = int(std::min<int64_t>(BLOCK, range.end - t));
            load_keys(job, u, t, count, w.keys);
            load_values(job, u, t, count, w.keys, true);
            pull(job.keys, w.keys.table, BLOCK, w.keys.columns, nullptr, grads.state.matrix, job.e, grads.z, w.dtable,
                 w.panel, w.columns);
            read<Floats>(job.keys, w.keys.table, BLOCK, grads.state.matrix, job.e, grads.z, w.dv, w.dones, w.panel);
            transpose(w.dtable + X * BLOCK, BLOCK, job.wide, BLOCK, w.dx, job.wide);
            put(c.dk, u.index * c.m + t, count, c.d, 1.0f, w.dx, job.wide);
            put(c.dv, u.index * c.m + t, count, c.e, 1.0f, w.dv, job.e);
        }
    }

    void read_state(Sums& sums, int64_t i) const {
        sums.add(job, at(c.kv1, i, job.each_kv()), at(c.z1, i, job.each_z()));
        sums.settle();
    }

    void bidirectional() const {
        int64_t units = job.units(), parts = parts_of(job, units, std::max(c.n * c.h / c.s, c.m), 2 * BLOCK);
        if (parts == 1) {
            in_parallel(job, units, [&](int64_t i) {
                Sums sums(job, Scratch::own()), grads(job, Scratch::own());
                Unit u = job.unit(i);
                read_state(sums, i);
                grads.add(job, at(c.dkv1, i, job.each_kv()), at(c.dz1, i, job.each_z()));
                for (int64_t r = 0; r < u.queries; r++) pull_queries(sums, grads, u, r, {0, c.n});
                finish_state(grads, i);
                pull_keys(grads, u, {0, c.m});
            });
            return;
        }
        Partial partial(job, units * parts), merged(job, units);
        in_parallel(job, units * parts, [&](int64_t i) {
            Sums sums(job, Scratch::own()), grads(job, Scratch::own());
            Unit u = job.unit(i / parts);
            read_state(sums, u.index);
            for (int64_t r = 0; r < u.queries; r++)
                pull_queries(sums, grads, u, r, part_of(c.n, parts, i % parts, BLOCK));
            grads.save(job, partial.kv_of(i), partial.z_of(i));
        });
        in_parallel(job, units, [&](int64_t i) {
            Sums grads(job, Scratch::own());
            grads.add(job, at(c.dkv1, i, job.each_kv()), at(c.dz1, i, job.each_z()));
            for (int64_t p = 0; p < parts; p++)
                grads.add(job, partial.kv_of(i * parts + p), partial.z_of(i * parts + p));
            finish_state(grads, i);
            grads.save(job, merged.kv_of(i), merged.z_of(i));
        });
        in_parallel(job, units * parts, [&](int64_t i) {
            Sums grads(job, Scratch::own());
            grads.add(job, merged.kv_of(i / parts), merged.z_of(i / parts));
            grads.settle();
            pull_keys(grads, job.unit(i / parts), part_of(c.m, parts, i % parts, BLOCK));
        });
    }

    void finish_state(Sums& grads, int64_t i) const {
        grads.settle();
        grads.save(job, at(c.dkv0, i, job.each_kv()), at(c.dz0, i, job.each_z()));
    }

    // Causal, from the left: what queries get, and what keys get inside their chunk. `sums` is the state before the
    // range.
    void sweep_right(Sums& sums, const Unit& u, Range range) const {
        Scratch& scratch = Scratch::own();
        Work w(job, CHUNK, scratch);
        Gates gates(job, CHUNK, scratch);
        Forward forward{job};
        for (int64_t t = range.begin; t < range.end; t += CHUNK) {
            int count = int(std::min<int64_t>(CHUNK, range.end - t));
            load_keys(job, u, t, count, w.keys);
            load_values(job, u, t, count, w.keys, true);
            gates.load(job, u, t, count, CHUNK);
            sums.settle();
            std::fill(w.dk, w.dk + CHUNK * job.wide, 0.0f);
            std::fill(w.dv, w.dv + CHUNK * job.e, 0.0f);
            std::fill(w.dones, w.dones + CHUNK, 0.0f);
            for (int64_t r = 0; r < u.queries; r++) inside_chunk(sums, gates, u, r, t, count, w);
            put(c.dk, u.index * c.m + t, count, c.d, 1.0f, w.dk, job.wide);
            put(c.dv, u.index * c.m + t, count, c.e, 1.0f, w.dv, job.e);
            if (c.dones) std::copy_n(w.dones, count, c.dones + u.index * c.m + t);
            forward.write(sums, w.keys, gates, w.panel);
        }
    }

    void inside_chunk(const Sums& sums, const Gates& gates, const Unit& u, int64_t r, int64_t t, int count,
                      Work& w) const {
        load_gradient(u, r, t, count, w.queries, w.dsums);
        std::fill(w.dx, w.dx + CHUNK * job.wide, 0.0f);
        std::fill(w.dshift, w.dshift + CHUNK, 0.0f);
        direct_backward(weigh_of(job, w.queries, w.keys, gates.sums(), gates.sums(), true), job.d, CHUNK, count, count,
                        w.queries.keys(job.wide), w.keys.keys(job.wide), w.keys.vectors(job.e),
                        w.queries.vectors(job.e), w.dsums, w.dx, w.dk, w.dv, c.dones ? w.dones : nullptr,
                        c.shift ? w.dshift : nullptr, w.panel);
        if (gates.on) read_less(gates, w);
        pull(job.queries, w.queries.table, CHUNK, w.queries.columns, w.dsums, sums.state.matrix, job.e, sums.z,
             w.dtable, w.panel, w.columns);
        add_rows(w.dtable, CHUNK, w.dx, w.turned);
        put(c.dq, job.query(u, r) * c.n + t, count, c.d, c.scale, w.dx, job.wide);
        if (!c.shift) return;
        add_shift(w.queries, w.dtable, w.dshift);
        std::copy_n(w.dshift, count, c.dshift + job.query(u, r) * c.n + t);
    }

    // What queries read of a state has decayed, so that what comes back does too.
    void read_less(const Gates& gates, Work& w) const {
        scale_rows(w.queries.values, CHUNK, job.e, gates.read);
        scale_columns(w.queries.columns, CHUNK, job.e, gates.read);
        for (int i = 0; i < CHUNK; i++) w.dsums[i] *= gates.read[i];
    }

    // Causal, from the right: what keys get from later chunks. `grads` is the gradient of the state after the range.
    void sweep_left(Sums& grads, const Unit& u, Range range) const {
        Scratch& scratch = Scratch::own();
        Work w(job, CHUNK, scratch);
        Gates gates(job, CHUNK, scratch);
        int64_t chunks = (range.end - range.begin + CHUNK - 1) / CHUNK;
        for (int64_t i = chunks - 1; i >= 0; i--) {
            int64_t t = range.begin + i * CHUNK;
            int count = int(std::min<int64_t>(CHUNK, range.end - t));
            load_keys(job, u, t, count, w.keys);
            load_values(job, u, t, count, w.keys, true);
            gates.load(job, u, t, count, CHUNK);
            grads.settle();
            read<Floats>(job.keys, w.keys.table, CHUNK, grads.state.matrix, job.e, grads.z, w.dv, w.dones, w.panel);
            if (gates.on) {
                scale_columns(w.keys.columns, CHUNK, job.e, gates.write);
                scale_rows(w.dv, CHUNK, job.e, gates.write);
                for (int j = 0; j < CHUNK; j++) w.dones[j] *= gates.write[j];
            }
            pull(job.keys, w.keys.table, CHUNK, w.keys.columns, gates.writes(), grads.state.matrix, job.e, grads.z,
                 w.dtable, w.panel, w.columns);
            get(c.dk, u.index * c.m + t, count, CHUNK, c.d, w.dk, job.wide);
            add_rows(w.dtable, CHUNK, w.dk, w.turned);
            put(c.dk, u.index * c.m + t, count, c.d, 1.0f, w.dk, job.wide);
            float* dv = c.dv + (u.index * c.m + t) * c.e;
            for (int j = 0; j < count; j++)
                for (int p = 0; p < c.e; p++) dv[j * c.e + p] += w.dv[j * job.e + p];
            if (c.dones)
                for (int j = 0; j < count; j++) c.dones[u.index * c.m + t + j] += w.dones[j];
            earlier(grads, gates, u, t, count, w);
        }
    }

    // The gradient of the state after a chunk becomes that of the state before it.
    void earlier(Sums& grads, const Gates& gates, const Unit& u, int64_t t, int count, Work& w) const {
        if (gates.on) grads.times(gates.keep);
        for (int64_t r = 0; r < u.queries; r++) {
            load_gradient(u, r, t, count, w.queries, w.dsums);
            if (gates.on) read_less(gates, w);
            accumulate<Floats>(job.queries, w.queries.table, w.queries.tokens, w.queries.values, w.dsums, grads.state,
                               w.panel);
        }
    }

    void causal() const {
        int64_t units = job.units(), parts = parts_of(job, units, c.n, 8 * CHUNK);
        if (parts == 1) {
            in_parallel(job, units, [&](int64_t i) {
                Unit u = job.unit(i);
                Sums sums(job, Scratch::own()), grads(job, Scratch::own());
                sums.add(job, at(c.kv0, i, job.each_kv()), at(c.z0, i, job.each_z()));
                sweep_right(sums, u, {0, c.n});
                grads.add(job, at(c.dkv1, i, job.each_kv()), at(c.dz1, i, job.each_z()));
                sweep_left(grads, u, {0, c.n});
                finish_state(grads, i);
            });
            return;
        }
        Partial before = Forward{job}.starts(parts), after = ends(parts);
        in_parallel(job, units * parts, [&](int64_t i) {
            Range range = part_of(c.n, parts, i % parts, CHUNK);
            Unit u = job.unit(i / parts);
            Sums sums(job, Scratch::own()), grads(job, Scratch::own());
            sums.add(job, before.kv_of(i), before.z_of(i));
            sweep_right(sums, u, range);
            grads.add(job, after.kv_of(i), after.z_of(i));
            sweep_left(grads, u, range);
            if (i % parts == 0) finish_state(grads, i / parts);
        });
    }

    // The gradient of the state after each part of each unit.
    Partial ends(int64_t parts) const {
        int64_t units = job.units();
        Partial own(job, units * parts), after(job, units * parts);
        std::vector<float> keep(units * parts, 1.0f);
        in_parallel(job, units * parts, [&](int64_t i) {
            if (i % parts == 0) return;  // nobody ends before the first
            Scratch& scratch = Scratch::own();
            Sums grads(job, scratch);
            Work w(job, CHUNK, scratch);
            Gates gates(job, CHUNK, scratch);
            Range range = part_of(c.n, parts, i % parts, CHUNK);
            Unit u = job.unit(i / parts);
            for (int64_t t = (range.end - 1) / CHUNK * CHUNK; range.end > range.begin && t >= range.begin; t -= CHUNK) {
                int count = int(std::min<int64_t>(CHUNK, range.end - t));
                gates.load(job, u, t, count, CHUNK);
                earlier(grads, gates, u, t, count, w);
                keep[i] *= gates.keep;
            }
            grads.save(job, own.kv_of(i), own.z_of(i));
        });
        in_parallel(job, units, [&](int64_t u) {
            Sums grads(job, Scratch::own());
            grads.add(job, at(c.dkv1, u, job.each_kv()), at(c.dz1, u, job.each_z()));
            for (int64_t i = (u + 1) * parts - 1; i >= u * parts; i--) {
                grads.save(job, after.kv_of(i), after.z_of(i));
                if (i == u * parts) break;
                if (c.gates) grads.times(keep[i]);
                grads.add(job, own.kv_of(i), own.z_of(i));
            }
        });
        return after;
    }

    // The direct form: each part of a unit's query blocks adds into its own dk, dv and dones; these are then summed.
    void short_sequences() const {
        int64_t units = job.units(), parts = parts_of(job, units, c.n * c.h / c.s, BLOCK);
        int64_t padded_m = (c.m + BLOCK - 1) / BLOCK * BLOCK, each = padded_m * (job.wide + job.e + 1);
        std::vector<float> sums(parts > 1 ? units * parts * each : 0);
        in_parallel(job, units * parts, [&](int64_t i) {
            Scratch& scratch = Scratch::own();
            float* own = parts > 1 ? sums.data() + i * each : scratch.take(each);
            if (parts == 1) std::fill(own, own + each, 0.0f);
            all_pairs(job.unit(i / parts), parts, i % parts, own, own + padded_m * job.wide, own + each - padded_m);
            if (parts == 1) put_keys(i, own, padded_m);
        });
        if (parts == 1) return;
        in_parallel(job, units, [&](int64_t i) {
            float* first = sums.data() + i * parts * each;
            for (int64_t p = 1; p < parts; p++)
                for (int64_t x = 0; x < each; x++) first[x] += first[p * each + x];
            put_keys(i, first, padded_m);
        });
    }

    void put_keys(int64_t i, const float* own, int64_t padded_m) const {
        put(c.dk, i * c.m, c.m, c.d, 1.0f, own, job.wide);
        put(c.dv, i * c.m, c.m, c.e, 1.0f, own + padded_m * job.wide, job.e);
        if (c.dones) std::copy_n(own + padded_m * (job.wide + job.e), c.m, c.dones + i * c.m);
    }

    void all_pairs(const Unit& u, int64_t parts, int64_t part, float* dk, float* dv, float* dones) const {
        Scratch& scratch = Scratch::own();
        std::vector<Block> keys = all_keys(job, u, true, scratch);
        Work w(job, BLOCK, scratch);
        const float* decay = Forward{job}.decays(u, scratch);
        int64_t blocks = (c.n + BLOCK - 1) / BLOCK, items = blocks * u.queries;
        for (int64_t item = part; item < items; item += parts) {
            int64_t r = item / blocks, own = item % blocks, t = own * BLOCK;
            int count = int(std::min<int64_t>(BLOCK, c.n - t));
            load_gradient(u, r, t, count, w.queries, w.dsums);
            std::fill(w.dx, w.dx + BLOCK * job.wide, 0.0f);
            std::fill(w.dshift, w.dshift + BLOCK, 0.0f);
            for (int64_t j = 0; j < int64_t(keys.size()) && !(c.causal && j > own); j++)
                direct_backward(weigh_of(job, w.queries, keys[j], decay ? decay + t : nullptr,
                                         decay ? decay + j * BLOCK : nullptr, c.causal && j == own),
                                job.d, BLOCK, count, keys[j].count, w.queries.keys(job.wide), keys[j].keys(job.wide),
                                keys[j].vectors(job.e), w.queries.vectors(job.e), w.dsums, w.dx,
                                dk + j * BLOCK * job.wide, dv + j * BLOCK * job.e,
                                c.dones ? dones + j * BLOCK : nullptr, c.shift ? w.dshift : nullptr, w.panel);
            put(c.dq, job.query(u, r) * c.n + t, count, c.d, c.scale, w.dx, job.wide);
            if (c.shift) std::copy_n(w.dshift, count, c.dshift + job.query(u, r) * c.n + t);
        }
    }

    void run() const {
        if (c.direct) short_sequences();
        else if (c.causal) causal();
        else bidirectional();
    }
};

}  // namespace tsla
