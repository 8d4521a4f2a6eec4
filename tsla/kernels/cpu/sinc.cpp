// Sums over channels c of log(sinc^2 x + 1e-12), x = R_c (q_ic - k_jc), their softmax, and sums of slopes, for a tile
// of pairs on the CPU; called from sinc.py. Keys lie side by side in a vector, of which a query fills all lanes. The
// sine of a difference is made of sines and cosines of R q and R k, so that a pair takes none.
#include <cmath>

#include "vector.h"

namespace tsla {

constexpr int ROWS = 4;          // queries at a time, for which keys are loaded once
constexpr int BLOCK = 512;       // keys of a task: their channels stay in the second cache
constexpr float FLOOR = 1e-12f;  // as in tsla/ops/sinc.py
constexpr float NEAR = 1;        // of x^2: below, where differences cancel, polynomials of the least relative error
constexpr float FAR = 1e18f;     // of x^2: beyond, sinc^2 is nothing beside FLOOR
constexpr float LEAST = -64;     // of the logarithm of a share: below, it is nothing beside the largest one

struct Waves {  // x, sin(R x) and cos(R x): (b, d, count), the last ones side by side, with W more of any value after
                // them
    const float *x, *sin, *cos;
    int64_t batch, channel;
};

struct Tile {  // sinc.py has the same struct
    Waves q, k;
    const float* radius;  // (d)
    int64_t b, d, rows, keys, threads;
    float* logs;                           // (b, rows, keys)
    const float* weight;                   // (b, rows, keys), of each slope
    float *by_query, *by_key, *by_radius;  // (b, blocks, d, rows), (b, d, keys), (b, blocks, d)

    int64_t blocks() const { return (keys + BLOCK - 1) / BLOCK; }
};

struct Queries {  // a channel of ROWS of them; where fewer are left, the last again
    float x[ROWS], sin[ROWS], cos[ROWS];

    Queries(const Waves& q, int64_t at, int64_t left) {
        for (int r = 0; r < ROWS; r++) {
            int64_t i = at + std::min<int64_t>(r, left - 1);
            x[r] = q.x[i], sin[r] = q.sin[i], cos[r] = q.cos[i];
        }
    }
};

inline vec get(const float* p, int count) {
    return count == W ? load(p) : load_some(p, count);
}

inline void put(float* p, int count, vec x) {
    if (count == W) store(p, x);
    else std::memcpy(p, &x, count * sizeof(float));
}

inline float sum(vec x) {
    float total = 0;
    for (int i = 0; i < W; i++) total += x[i];
    return total;
}

// A product of fractions as two mantissas and a power of 2, so that no number of channels leaves what a float holds.
struct Product {
    vec top = all(1), bottom = all(1);
    ivec power{};

    // Two factors of 1e-12 to 1e18 at most between two of these.
    void settle() { power += exponent(top) - exponent(bottom); }

    static ivec exponent(vec& x) {
        ivec bits;
        std::memcpy(&bits, &x, sizeof bits);
        ivec rest = (bits & 0x007fffff) | 0x3f800000;
        std::memcpy(&x, &rest, sizeof x);
        return bits >> 23;
    }

    // Of the mantissas' quotient as 2 artanh s, |s| < 1/3.
    vec log() const {
        vec s = (top - bottom) / (top + bottom), y = s * s;
        vec p = y * 0.140891671f + 0.139803007f;
        p = p * y + 0.200124547f;
        p = p * y + 0.333331585f;
        vec whole = __builtin_convertvector(power, vec);
        return whole * 0.693359375f + (2.0f * (s * y * p + s) - whole * 2.12194440e-4f);  // ln 2 in two parts
    }
};

struct Angles {                  // sinc.py has the same struct
    const float *from, *radius;  // (b, d, count) at the strides that follow;  (d)
    int64_t batch, channel, token;
    float *x, *sin, *cos;  // (b, d, ld), of which the first `count` are filled
    int64_t b, d, count, ld, threads;
};

// x, sin(R x) and cos(R x) of a channel. Angles are made and reduced to a quarter of a turn in double.
inline void make_waves(const Angles& a, int64_t task) {
    int64_t b = task / a.d, c = task % a.d, at = task * a.ld;
    const float* from = a.from + b * a.batch + c * a.channel;
    float *x = a.x + at, *sin = a.sin + at, *cos = a.cos + at;
    double radius = a.radius[c];
    for (int64_t i = 0; i < a.count; i++) x[i] = from[i * a.token];
    for (int64_t i = 0; i < a.count; i++) {  // of nothing that keeps a compiler from taking many at once
        double angle = x[i] * radius, shifted = angle * 0.63661977236758134 + 6755399441055744.0;
        int64_t bits;  // 1.5 * 2^52 added rounds to a whole number, which the last bits then are
        std::memcpy(&bits, &shifted, sizeof bits);
        int32_t quarter = int32_t(bits);
        double turns = shifted - 6755399441055744.0;
        float r = float(angle - turns * 1.5707963267948966 - turns * 6.123233995736766e-17), y = r * r;
        float s = r + r * y * (-1.6666654611e-1f + y * (8.3321608736e-3f - y * 1.9515295891e-4f));
        float k = 1 - y / 2 + y * y * (4.166664568e-2f + y * (-1.388731625e-3f + y * 2.443315712e-5f));
        float one = quarter & 1 ? k : s, two = quarter & 1 ? s : k;
        sin[i] = quarter & 2 ? -one : one;
        cos[i] = (quarter + 1) & 2 ? -two : two;
    }
    int far = 0;
    for (int64_t i = 0; i < a.count; i++) far |= std::abs(x[i] * radius) > 1e9;
    for (int64_t i = 0; i < (far ? a.count : 0); i++) {
        sin[i] = float(std::sin(x[i] * radius));
        cos[i] = float(std::cos(x[i] * radius));
    }
}

// The sums of W keys from `key` on, or of `count`, for ROWS queries from `row` on.
inline void log_sums(const Tile& t, int64_t b, int64_t row, int64_t key, int count) {
    Product product[ROWS];
    vec poison[ROWS]{};  // NaN where a query or key is not finite: products would lose it with its exponent
    for (int64_t c = 0; c < t.d; c++) {
        int64_t at = b * t.k.batch + c * t.k.channel + key;
        vec x = load(t.k.x + at), sin = load(t.k.sin + at), cos = load(t.k.cos + at);
        Queries q(t.q, b * t.q.batch + c * t.q.channel + row, t.rows - row);
        float square = t.radius[c] * t.radius[c];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            vec gap = q.x[r] - x, y = gap * gap * square;
            vec sine = q.sin[r] * cos - q.cos[r] * sin;
            vec p = y * 1.30616376e-4f - 3.16535402e-3f;
            p = p * y + 4.44410667e-2f;
            p = p * y - 3.33332896e-1f;
            p = p * y + 1.0f;
            vec within = y < FAR ? y : all(FAR);
            poison[r] += sine * 0.0f;
            product[r].top *= y < NEAR ? p : sine * sine + within * FLOOR;
            product[r].bottom *= y < NEAR ? all(1) : within;
            if (c & 1) product[r].settle();
        }
    }
    for (int r = 0; r < std::min<int64_t>(ROWS, t.rows - row); r++) {
        product[r].settle();
        put(t.logs + (b * t.rows + row + r) * t.keys + key, count, product[r].log() + poison[r]);
    }
}

struct Shares {           // sinc.py has the same struct
    float* logs;          // (b, rows, keys), in whose place the shares come
    const float* hidden;  // (b, keys), -inf where no query sees the key; or null
    int64_t batch;        // from a row of `hidden` to the next
    int64_t b, rows, keys, causal, threads;
    float scale;
};

// Shares of exp(scale * logs) in its sum over the keys that a query sees; those below e^LEAST of the largest are 0.
inline void make_shares(const Shares& s, int64_t task) {
    float* logs = s.logs + task * s.keys;
    const float* hidden = s.hidden ? s.hidden + task / s.rows * s.batch : nullptr;
    int64_t seen = s.causal ? s.keys - s.rows + task % s.rows + 1 : s.keys;
    vec most = all(-INFINITY), total{};
    for (int64_t j = 0; j < seen; j += W) {
        int count = int(std::min<int64_t>(W, seen - j));
        vec x = get(logs + j, count) * s.scale;
        if (hidden) x += get(hidden + j, count);
        if (count < W) x = lanes() < count ? x : all(-INFINITY);
        put(logs + j, count, x);
        most = x > most ? x : most;
    }
    float largest = most[0];
    for (int i = 1; i < W; i++) largest = std::max(largest, most[i]);
    if (largest == -INFINITY) largest = 0;  // no key is seen
    for (int64_t j = 0; j < seen; j += W) {
        int count = int(std::min<int64_t>(W, seen - j));
        vec x = get(logs + j, count) - largest, share = exp_negative(x);
        share = x < LEAST ? vec{} : share;
        if (count < W) share = lanes() < count ? share : vec{};
        put(logs + j, count, share);
        total += share;
    }
    float sums = sum(total), inverse = sums == 0 ? 0 : 1 / sums;
    for (int64_t j = 0; j < seen; j++) logs[j] *= inverse;
    std::fill(logs + seen, logs + s.keys, 0.0f);
}

// S (S - x C) / (x^2 (S^2 + 1e-12 x^2)) of y = x^2, S = sin x, C = cos x: half of what -x is to be multiplied by for
// the slope at x; (1 - x cot x) / x^2 near 0.
inline vec slope(vec x, vec y, vec sine, vec cosine) {
    vec p = y * 2.78311727e-5f + 2.05672128e-4f;
    p = p * y + 2.11859145e-3f;
    p = p * y + 2.22219452e-2f;
    p = p * y + 3.33333343e-1f;
    return y < NEAR ? p : sine * (sine - x * cosine) / (y * (sine * sine + y * FLOOR));
}

// Slopes of a block of keys, times their weights: sums over its keys and over all queries, channel by channel.
inline void slope_sums(const Tile& t, int64_t b, int64_t block) {
    int64_t begin = block * BLOCK, size = std::min<int64_t>(BLOCK, t.keys - begin);
    const float* end = t.weight + t.b * t.rows * t.keys;
    for (int64_t c = 0; c < t.d; c++) {
        int64_t at = b * t.k.batch + c * t.k.channel + begin, own = (b * t.blocks() + block) * t.d + c;
        float radius = t.radius[c], scale = -2 * radius, by_key[BLOCK]{};
        vec by_radius{};
        for (int64_t row = 0; row < t.rows; row += ROWS) {
            int here = int(std::min<int64_t>(ROWS, t.rows - row));
            Queries q(t.q, b * t.q.batch + c * t.q.channel + row, here);
            vec by_query[ROWS]{};
            for (int64_t j = 0; j < size; j += W) {
                int count = int(std::min<int64_t>(W, size - j));
                vec k = load(t.k.x + at + j), sin = load(t.k.sin + at + j), cos = load(t.k.cos + at + j);
                vec total = load(by_key + j);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; r++) {
                    if (r >= here) break;
                    const float* weights = t.weight + (b * t.rows + row + r) * t.keys + begin + j;
                    vec weight = weights + W <= end ? load(weights) : load_some(weights, count);
                    vec gap = q.x[r] - k, x = gap * radius;
                    vec sine = q.sin[r] * cos - q.cos[r] * sin, cosine = q.cos[r] * cos + q.sin[r] * sin;
                    vec change = slope(x, x * x, sine, cosine) * x * weight;
                    if (count < W) {  // what lies beyond the tile may be anything, NaN too
                        change = lanes() < count ? change : vec{};
                        gap = lanes() < count ? gap : vec{};
                    }
                    by_query[r] += change;
                    total += change;
                    by_radius += change * gap;
                }
                store(by_key + j, total);
            }
            for (int r = 0; r < here; r++) t.by_query[own * t.rows + row + r] = sum(by_query[r]) * scale;
        }
        float* to = t.by_key + (b * t.d + c) * t.keys + begin;
        for (int64_t j = 0; j < size; j++) to[j] = by_key[j] * -scale;
        t.by_radius[own] = sum(by_radius) * -2;
    }
}

}  // namespace tsla

extern "C" {

// Grows with every change of what Python hands over.
int64_t tsla_abi() {
    return sizeof(tsla::Tile) + sizeof(tsla::Shares) + sizeof(tsla::Angles);
}

int64_t tsla_block() {
    return tsla::BLOCK;
}

void tsla_waves(const tsla::Angles* angles) {
#pragma omp parallel for num_threads(angles->threads)
    for (int64_t task = 0; task < angles->b * angles->d; task++) tsla::make_waves(*angles, task);
}

void tsla_log_sinc(const tsla::Tile* tile) {
    int64_t groups = (tile->rows + tsla::ROWS - 1) / tsla::ROWS, blocks = tile->blocks();
#pragma omp parallel for num_threads(tile->threads)
    for (int64_t task = 0; task < tile->b * groups * blocks; task++) {
        int64_t row = task / blocks % groups * tsla::ROWS, begin = task % blocks * tsla::BLOCK;
        int64_t end = std::min(begin + tsla::BLOCK, tile->keys);
        for (int64_t key = begin; key < end; key += tsla::W)
            tsla::log_sums(*tile, task / (groups * blocks), row, key, int(std::min<int64_t>(tsla::W, end - key)));
    }
}

void tsla_softmax(const tsla::Shares* shares) {
#pragma omp parallel for num_threads(shares->threads)
    for (int64_t task = 0; task < shares->b * shares->rows; task++) tsla::make_shares(*shares, task);
}

void tsla_slope_sums(const tsla::Tile* tile) {
    int64_t blocks = tile->blocks();
#pragma omp parallel for num_threads(tile->threads)
    for (int64_t task = 0; task < tile->b * blocks; task++) tsla::slope_sums(*tile, task / blocks, task % blocks);
}
}
