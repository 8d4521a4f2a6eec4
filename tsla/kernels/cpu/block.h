// A block of tokens as the kernels work on it, filled from the caller's tensors, and the memory it lives in.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "call.h"
#include "direct.h"
#include "features.h"

namespace tsla {

constexpr int BLOCK = 64;  // tokens at a time: their values and a panel of features fit the first cache
constexpr int CHUNK = 48;  // of causal attention, which is direct inside a chunk
static_assert(BLOCK <= LINE && CHUNK <= LINE && 3 * STRIP <= PANEL);

#ifdef __AVX512BF16__
constexpr bool has_pairs = true;
#else
constexpr bool has_pairs = false;
#endif

// Memory of one thread, kept between calls: what is taken is given back all at once.
class Scratch {
  public:
    uint32_t* take_pairs(size_t count) { return reinterpret_cast<uint32_t*>(take(count)); }

    float* take(size_t count) {
        count = (count + 15) / 16 * 16;
        if (used + count > size) grow(count);
        used += count;
        return last().get() + used - count;
    }

    void clear() {
        if (parts.size() > 1) {  // one part next time
            size_t sum = all;
            parts.clear();
            all = used = size = 0;
            grow(sum);
        }
        used = 0;
        if (all > LARGEST) parts.clear(), all = size = 0;
    }

    static Scratch& own() {
        static thread_local Scratch scratch;
        return scratch;
    }

  private:
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    static constexpr size_t LARGEST = size_t(1) << 22;  // floats that a thread keeps: 16 MiB

    std::unique_ptr<float, Free>& last() { return parts.back(); }

    void grow(size_t count) {
        size_t wanted = std::max(count, size_t(1) << 14);
        float* p = static_cast<float*>(std::aligned_alloc(64, wanted * sizeof(float)));
        if (!p) throw std::bad_alloc();  // with all as it was
        parts.emplace_back(p);
        size = wanted, used = 0, all += wanted;
    }

    std::vector<std::unique_ptr<float, Free>> parts;
    size_t size = 0, used = 0, all = 0;
};

constexpr int64_t WORTH = 2'000'000;  // operations for which it pays to wake one more thread

// One state (batch, state head) of the call and the heads that belong to it.
struct Unit {
    int64_t b, s, index;
    int64_t key_head, first_query, queries;  // query heads first_query ... first_query + queries
};

// The call and what is the same for all its blocks.
struct Job {
    const Call& c;
    Map keys, queries;
    int d, e, wide, f;  // padded widths of q, k and of v; features
    bool pairs;         // whether sums are of products of bfloat16
    int64_t threads;    // fewer than may be used where there is too little to do

    explicit Job(const Call& c)
        : c(c),
          keys(c.d, 1.0f),
          queries(c.d, c.curve),
          d(c.d),
          e(padded(c.e)),
          wide(padded(c.d)),
          f(feature_count(c.d)),
          pairs(has_pairs && c.q.half && c.k.half && c.v.half && c.out.half && !c.gates),
          threads(std::min(c.threads, 1 + operations() / WORTH)) {}

    // About how many there are, to decide over threads.
    int64_t operations() const {
        if (c.direct) return 2 * c.b * c.h * c.n * c.m * (c.d + c.e);
        return 2 * c.b * (c.h * c.n + c.s * c.m) * f * c.e;
    }

    int64_t units() const { return c.b * c.s; }
    int64_t each_kv() const { return f * c.e; }
    int64_t each_z() const { return f; }

    Unit unit(int64_t i) const {
        int64_t s = i % c.s, r = c.h / c.s;
        return {i / c.s, s, i, s * c.g / c.s, s * r, r};
    }

    Rows rows(const Strided& x, int64_t batch, int64_t head, int64_t width) const {
        char* at = static_cast<char*>(x.data) + (batch * x.batch + head * x.head) * (x.half ? 2 : 4);
        return {at, x.token, int(width), x.half != 0};
    }

    const uint8_t* mask(int64_t batch) const { return c.mask ? c.mask + batch * c.m : nullptr; }
    int64_t query(const Unit& u, int64_t r) const { return u.b * c.h + u.first_query + r; }
};

// T tokens of k and v (or of q and the gradient g), by rows and by columns, with their table of factors.
struct Block {
    int tokens, count = 0;
    float *x, *table, *values, *columns, *shift;

    Block(const Job& job, const Map& map, int tokens, Scratch& scratch) : tokens(tokens) {
        x = scratch.take(tokens * job.wide);
        table = scratch.take(map.rows * tokens);
        values = scratch.take(tokens * job.e);
        columns = scratch.take(tokens * job.e);
        shift = scratch.take(tokens);
    }

    Tokens keys(int wide) const { return {x, table + X * tokens, wide}; }
    Tokens vectors(int e) const { return {values, columns, e}; }
    float* mask() const { return table + FLAT * tokens; }
};

inline void turn(const float* rows, int tokens, int width, float* columns) {
    transpose(rows, width, tokens, width, columns, tokens);
}

inline void load_keys(const Job& job, const Unit& u, int64_t begin, int count, Block& to) {
    const uint8_t* mask = job.mask(u.b);
    to.count = count;
    job.rows(job.c.k, u.b, u.key_head, job.d).get(begin, count, to.tokens, 1.0f, mask, to.x, job.wide);
    turn(to.x, to.tokens, job.wide, to.table + X * to.tokens);
    for (int t = 0; t < to.tokens; t++)
        to.table[FLAT * to.tokens + t] = to.table[SLOPE * to.tokens + t] = t < count && (!mask || mask[begin + t]);
    complete(job.keys, to.table, to.tokens);
}

inline void load_values(const Job& job, const Unit& u, int64_t begin, int count, Block& to, bool columns) {
    job.rows(job.c.v, u.b, u.key_head, job.c.e).get(begin, count, to.tokens, 1.0f, job.mask(u.b), to.values, job.e);
    if (columns) turn(to.values, to.tokens, job.e, to.columns);
}

// All keys and values of a unit, block by block.
inline std::vector<Block> all_keys(const Job& job, const Unit& u, bool columns, Scratch& scratch) {
    std::vector<Block> blocks;
    for (int64_t t = 0; t < job.c.m; t += BLOCK) {
        blocks.emplace_back(job, job.keys, BLOCK, scratch);
        int count = int(std::min<int64_t>(BLOCK, job.c.m - t));
        load_keys(job, u, t, count, blocks.back());
        load_values(job, u, t, count, blocks.back(), columns);
    }
    return blocks;
}

// The polynomial of each query around its shift: P(s - m) = P(-m) + P'(-m) s + P'' s^2 / 2.
inline void load_queries(const Job& job, const Unit& u, int64_t r, int64_t begin, int count, Block& to) {
    const Call& c = job.c;
    const float* shift = c.shift ? c.shift + job.query(u, r) * c.n + begin : nullptr;
    to.count = count;
    job.rows(c.q, u.b, u.first_query + r, job.d).get(begin, count, to.tokens, c.scale, nullptr, to.x, job.wide);
    turn(to.x, to.tokens, job.wide, to.table + X * to.tokens);
    for (int t = 0; t < to.tokens; t++) {
        float m = to.shift[t] = shift && t < count ? shift[t] : 0.0f;
        to.table[FLAT * to.tokens + t] = c.flat - c.slope * m + c.curve * 0.5f * m * m;
        to.table[SLOPE * to.tokens + t] = c.slope - c.curve * m;
    }
    complete(job.queries, to.table, to.tokens);
}

// Rows of a contiguous tensor of a gradient, there and back.
inline void put(float* tensor, int64_t row, int64_t count, int64_t width, float factor, const float* from, int ld) {
    Rows{reinterpret_cast<char*>(tensor), width, int(width), false}.put(row, int(count), factor, from, ld);
}

inline void get(float* tensor, int64_t row, int count, int tokens, int64_t width, float* to, int ld) {
    Rows{reinterpret_cast<char*>(tensor), width, int(width), false}.get(row, count, tokens, 1.0f, nullptr, to, ld);
}

// Running sums of the log gates inside a chunk, and what they do to what is written, read and kept.
struct Gates {
    bool on;
    float *sum, *read, *write, keep = 1;

    Gates(const Job& job, int tokens, Scratch& scratch)
        : on(job.c.gates), sum(scratch.take(tokens)), read(scratch.take(tokens)), write(scratch.take(tokens)) {}

    void load(const Job& job, const Unit& u, int64_t begin, int count, int tokens) {
        if (!on) return;
        const float* gates = job.c.gates + u.index * job.c.n + begin;
        double so_far = 0;
        for (int t = 0; t < tokens; t++) sum[t] = float(so_far += t < count ? gates[t] : 0.0f);
        for (int t = 0; t < tokens; t++) read[t] = std::exp(sum[t]), write[t] = std::exp(float(so_far) - sum[t]);
        keep = std::exp(float(so_far));
    }

    const float* sums() const { return on ? sum : nullptr; }
    const float* writes() const { return on ? write : nullptr; }
};

inline void scale_rows(float* rows, int tokens, int width, const float* by) {
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < width; i += W) store(rows + t * width + i, load(rows + t * width + i) * by[t]);
}

inline void scale_columns(float* columns, int tokens, int width, const float* by) {
    for (int i = 0; i < width; i++)
        for (int t = 0; t < tokens; t += W)
            store(columns + i * tokens + t, load(columns + i * tokens + t) * load(by + t));
}

// The weights of the pairs of two blocks; `sums`: running sums of log gates of each, or null.
inline Weigh weigh_of(const Job& job, const Block& queries, const Block& keys, const float* query_sums,
                      const float* key_sums, bool causal) {
    bool partial = job.c.mask || (!causal && keys.count % STRIP);
    return {
        job.c.flat, job.c.slope, job.c.curve, job.c.shift ? queries.shift : nullptr, partial ? keys.mask() : nullptr,
        query_sums, key_sums,    causal};
}

constexpr float SMALLEST = 1e-37f;  // a denominator with an inverse whose digits are all there

// 1 / x for x > 0, finite though x be denormal.
inline float inverse_of(float x) {
    return std::min(1.0f / x, 3e38f);
}

// Divides sums by their denominators if that is asked for, and writes both. Changes `out`.
inline void finish(const Job& job, const Unit& u, int64_t r, int64_t begin, int count, float* out, const float* den) {
    const Call& c = job.c;
    std::copy_n(den, count, c.den + job.query(u, r) * c.n + begin);
    if (c.normalize)
        for (int t = 0; t < count; t++) {
            float own = den[t] == 0 ? 1.0f : den[t];  // 0 if no key is seen: then out is 0 too
            float inverse = inverse_of(own);
            for (int i = 0; i < job.e; i += W) {
                vec sum = load(out + t * job.e + i), quotient = sum * inverse;
                quotient += (sum - quotient * own) * inverse;  // as exact as a division
                store(out + t * job.e + i, own < SMALLEST ? sum / own : quotient);
            }
        }
    job.rows(c.out, u.b, u.first_query + r, c.e).put(begin, count, 1.0f, out, job.e);
}

// Calls work(item) for each item, on as many threads as the call may use, always with the same items on the same
// thread. What is thrown must not leave a thread: it is thrown again once all are done.
template <class Work>
void in_parallel(const Job& job, int64_t items, const Work& work) {
    std::atomic<bool> failed{false};
    [[maybe_unused]] int threads = items > 1 ? int(job.threads) : 1;
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
#endif
    for (int64_t i = 0; i < items; i++) {
        try {
            Scratch::own().clear();
            work(i);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    }
    if (failed) throw std::bad_alloc();
}

// In how many parts to cut the tokens of each of `units`, so that all threads have as much to do.
inline int64_t parts_of(const Job& job, int64_t units, int64_t tokens, int64_t least) {
    int64_t threads = job.threads;
    if (units % threads == 0 || units >= 8 * threads) return 1;
    int64_t wanted = units >= threads ? (4 * threads + units - 1) / units : (threads + units - 1) / units;
    while (units * wanted % threads && wanted * units < 4 * threads) wanted++;
    return std::max<int64_t>(1, std::min(wanted, tokens / least));
}

struct Range {
    int64_t begin, end;
};

// Part `i` of `parts` of some tokens, in whole blocks.
inline Range part_of(int64_t tokens, int64_t parts, int64_t i, int block) {
    int64_t blocks = (tokens + block - 1) / block;
    return {std::min(tokens, blocks * i / parts * block), std::min(tokens, blocks * (i + 1) / parts * block)};
}

}  // namespace tsla
