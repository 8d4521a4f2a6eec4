// Images of Pathfinder: two snakes of paddles, distractors and two markers; called from pathfinder_generator.py, which
// makes the tables and says what they mean. Whole numbers decide everything, and each image has random numbers of its
// own, so that every machine and every number of threads makes the same images.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int DEGREES = 360;           // of which a snake begins at one
constexpr int REDRAWS = 3;             // of a paddle that does not fit, or a beginning outside the image
constexpr int ATTEMPTS = 5;            // at each distractor
constexpr int FREE = 76;               // of 255: a pixel is free whose mask is at most 0.3
constexpr double CLOSED = 1e-4 * 255;  // a sum of weights below it is a dead end
constexpr double UNIT = 1ll << 31;     // a weight of 1
constexpr double LEFT = 0.01;          // the share of free pixels below which no distractor is tried
constexpr uint64_t GOLDEN = 0x9e3779b97f4a7c15;

struct Paddles {  // of one margin: `DEGREES` that begin a snake, then one for each place of the circle
    int64_t half, margin, places;
    const uint8_t *ink, *mask, *near;      // (paddles, side, side); near: mask dilated by the margin
    const int32_t *core_begin, *core;      // of each mask: (y, x, the mask from which it does not fit)
    const int32_t *kernel_begin, *kernel;  // of each beginning: (y, x) which must be free; none: it never fits
    const double *head, *pivot;            // of each beginning: from its tail, and from the head
    const double* onward;                  // of each paddle: from a pivot to the next
    const int32_t* circle;                 // of each place, from the pivot
    const uint32_t* weight;                // (paddles, places): cos^2 of the turn, in 1 / `UNIT`
};

struct Call {  // pathfinder_generator.py has the same struct
    const Paddles* paddles;
    int64_t margins, size, apron, frame, centre, contour, distractors, distractor_length;
    int64_t target_gain, distractor_gain, marker_gain, marker_half;
    const uint8_t* marker;  // (side, side)
    const double* drift;    // (degrees, 2): from the first tail to the second
    uint64_t key;
    int64_t first, count, threads;
    uint8_t *pixels, *labels;  // (count, size, size), (count)
    int32_t *markers, *tries;  // (count, 2, 2), (count)
};

struct Point {
    int y, x;

    Point operator+(Point by) const { return {y + by.y, x + by.x}; }
};

Point at(const int32_t* table, int64_t row) {
    return {table[2 * row], table[2 * row + 1]};
}

// Rounded up, as in the original: near the edge it counts that the sine of 180 degrees is 1e-16.
Point moved(Point from, const double* table, int64_t row) {
    return {int(std::ceil(from.y + table[2 * row])), int(std::ceil(from.x + table[2 * row + 1]))};
}

class Random {  // xoshiro256++
  public:
    Random(uint64_t key, uint64_t image) {
        uint64_t seed = key + mixed((image + 1) * GOLDEN);
        for (uint64_t& part : state) part = mixed(seed += GOLDEN);
    }

    uint64_t below(uint64_t n) { return uint64_t((unsigned __int128)(next()) * n >> 64); }

  private:
    uint64_t state[4];

    static uint64_t mixed(uint64_t x) {  // splitmix64
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
        x = (x ^ x >> 27) * 0x94d049bb133111eb;
        return x ^ x >> 31;
    }

    static uint64_t turned(uint64_t x, int by) { return x << by | x >> (64 - by); }

    uint64_t next() {
        uint64_t result = turned(state[0] + state[3], 23) + state[0], shifted = state[1] << 17;
        state[2] ^= state[0], state[3] ^= state[1], state[1] ^= state[2], state[0] ^= state[3];
        state[2] ^= shifted, state[3] = turned(state[3], 45);
        return result;
    }
};

template <class T>
class Canvas {  // an image with an apron, so that a stamp at any pixel stays inside
  public:
    Canvas(int64_t size, int64_t apron) : stride(size + 2 * apron), apron(apron), cells(stride * stride) {}

    T& operator()(Point p) { return cells[(p.y + apron) * stride + p.x + apron]; }

    void put(const uint8_t* stamp, int64_t half, Point centre, int64_t gain) {
        int64_t side = 2 * half + 1;
        T* row = &(*this)({centre.y - int(half), centre.x - int(half)});
        for (int64_t y = 0; y < side; y++, row += stride, stamp += side)
            for (int64_t x = 0; x < side; x++) row[x] = std::max(row[x], T(stamp[x] * gain));
    }

  private:
    int64_t stride, apron;
    std::vector<T> cells;
};

struct Drawn {
    int paddle;
    Point place;
};

struct Snake {
    Point pivot;
    std::vector<Drawn> paddles;
};

class Scene {  // an image in the making
  public:
    Scene(const Call& call, const Paddles& paddles, Random& random)
        : c(call), p(paddles), random(random), mask(c.size, c.apron), near(c.size, c.apron) {}

    int tries = 0;
    Snake snakes[2];

    void draw_snakes() {
        do tries++;
        while (!both());
        put(snakes[1].paddles.back());  // the first one's last paddle is forgotten, as in the original
    }

    std::vector<Snake> draw_distractors() {
        std::vector<Snake> found;
        for (int64_t i = 0; i < c.distractors; i++)
            for (int attempt = 0; attempt < ATTEMPTS && has_room(); attempt++) {
                Canvas<uint8_t> old_mask = mask, old_near = near;
                Snake snake;
                if (begin(snake, c.frame) && grow(snake, c.distractor_length)) {
                    put(snake.paddles.back());
                    found.push_back(snake);
                    break;
                }
                std::swap(mask, old_mask), std::swap(near, old_near);
            }
        return found;
    }

  private:
    const Call& c;
    const Paddles& p;
    Random& random;
    Canvas<uint8_t> mask, near;  // what is taken, and the same dilated by the margin

    bool inside(Point q) const { return q.y >= 0 && q.x >= 0 && q.y < c.size && q.x < c.size; }

    void put(const Drawn& drawn) {
        int64_t side = 2 * p.half + 1, wide = side + 2 * p.margin;
        mask.put(p.mask + drawn.paddle * side * side, p.half, drawn.place, 1);
        near.put(p.near + drawn.paddle * wide * wide, p.half + p.margin, drawn.place, 1);
    }

    void clear() {
        for (int y = 0; y < c.size; y++)
            for (int x = 0; x < c.size; x++) {
                int64_t edge = std::min({int64_t(y), int64_t(x), c.size - 1 - y, c.size - 1 - x});
                mask({y, x}) = edge < c.frame ? 255 : 0;
                near({y, x}) = edge < c.frame + p.margin ? 255 : 0;
            }
    }

    bool both() {
        clear();
        if (!begin(snakes[0], c.centre) || !begin_beside()) return false;
        for (int64_t i = 1; i < c.contour; i++)
            if (!extend(snakes[0]) || !extend(snakes[1])) return false;
        return true;
    }

    bool grow(Snake& snake, int64_t length) {
        for (int64_t i = 1; i < length; i++)
            if (!extend(snake)) return false;
        return true;
    }

    bool has_room() {
        int64_t free = 0;
        for (int y = 0; y < c.size; y++)
            for (int x = 0; x < c.size; x++) free += mask({y, x}) <= FREE;
        return free >= LEFT * double(c.size * c.size);
    }

    // Begins anywhere that is free and at least `border` from the edge, in a direction that was drawn before.
    bool begin(Snake& snake, int64_t border) {
        for (int redraw = 0; redraw < REDRAWS; redraw++) {
            int angle = int(random.below(DEGREES));
            Point tail;
            if (p.kernel_begin[angle] == p.kernel_begin[angle + 1] || !free_place(angle, border, tail)) return false;
            if (set(snake, angle, tail)) return true;
        }
        return false;
    }

    bool begin_beside() {
        for (int redraw = 0; redraw < REDRAWS; redraw++) {
            int angle = int(random.below(DEGREES)), way = int(random.below(DEGREES));
            Point from = snakes[0].paddles[0].place;  // half-way numbers go to the even one
            Point tail{int(std::nearbyint(from.y + c.drift[2 * way])),
                       int(std::nearbyint(from.x + c.drift[2 * way + 1]))};
            if (set(snakes[1], angle, tail)) return true;
        }
        return false;
    }

    bool set(Snake& snake, int angle, Point tail) {
        Point head = moved(tail, p.head, angle);
        snake.pivot = moved(head, p.pivot, angle);
        snake.paddles.assign(1, {angle, tail});
        return inside(head) && inside(snake.pivot);
    }

    // One of the free places, each as likely as the others; false if there is none.
    bool free_place(int angle, int64_t border, Point& found) {
        int64_t low = std::max<int64_t>(0, border - p.half), span = c.size - 2 * low;
        auto drawn = [&] { return Point{int(low + random.below(span)), int(low + random.below(span))}; };
        for (int64_t draw = 0; draw < span * span; draw++)
            if (found = drawn(); is_free(angle, border, found)) return true;
        std::vector<Point> all;
        for (int y = 0; y < c.size; y++)
            for (int x = 0; x < c.size; x++)
                if (is_free(angle, border, {y, x})) all.push_back({y, x});
        if (all.empty()) return false;
        found = all[random.below(all.size())];
        return true;
    }

    bool is_free(int angle, int64_t border, Point place) {
        for (int i = p.kernel_begin[angle]; i < p.kernel_begin[angle + 1]; i++) {
            Point q = place + at(p.kernel, i);
            if (!inside(q)) continue;
            int64_t edge = std::min({int64_t(q.y), int64_t(q.x), c.size - 1 - q.y, c.size - 1 - q.x});
            if (edge < border || mask(q) > FREE) return false;
        }
        return true;
    }

    // One paddle more: its head stands on a circle around the next pivot. Only now is the last one put into the mask.
    bool extend(Snake& snake) {
        Drawn last = snake.paddles.back();
        Point pivot = moved(snake.pivot, p.onward, last.paddle);
        const uint32_t* weight = p.weight + last.paddle * p.places;
        uint64_t total = 0, sums[256];
        for (int64_t i = 0; i < p.places; i++) {
            Point head = pivot + at(p.circle, i);
            if (inside(head)) total += uint64_t(255 - near(head)) * weight[i];
            sums[i] = total;
        }
        if (double(total) < CLOSED * UNIT) return false;
        for (int redraw = 0; redraw < REDRAWS; redraw++) {
            int chosen = int(std::upper_bound(sums, sums + p.places, random.below(total)) - sums);
            Drawn next{DEGREES + chosen, pivot + at(p.circle, chosen)};
            if (fits(next)) {
                put(last);
                snake.pivot = pivot;
                snake.paddles.push_back(next);
                return true;
            }
        }
        return false;
    }

    bool fits(const Drawn& drawn) {
        for (int i = p.core_begin[drawn.paddle]; i < p.core_begin[drawn.paddle + 1]; i++) {
            const int32_t* cell = p.core + 3 * i;
            if (mask(drawn.place + Point{cell[0], cell[1]}) >= cell[2]) return false;
        }
        return true;
    }
};

// The greatest and the least value become 255 and 0.
void stretch(const Call& c, Canvas<uint16_t>& image, uint8_t* pixels) {
    uint32_t low = UINT16_MAX, high = 0;
    for (int y = 0; y < c.size; y++)
        for (int x = 0; x < c.size; x++) {
            low = std::min<uint32_t>(low, image({y, x}));
            high = std::max<uint32_t>(high, image({y, x}));
        }
    uint32_t range = high - low;
    for (int y = 0; y < c.size; y++)
        for (int x = 0; x < c.size; x++) *pixels++ = uint8_t((510 * (image({y, x}) - low) + range) / (2 * range));
}

void make(const Call& c, int64_t number) {
    Random random(c.key, c.first + number);
    int label = int(random.below(2));
    const Paddles& p = c.paddles[random.below(c.margins)];
    Scene scene(c, p, random);
    scene.draw_snakes();
    int64_t cells = (2 * p.half + 1) * (2 * p.half + 1);
    Canvas<uint16_t> image(c.size, c.apron);
    auto paint = [&](const Snake& snake, int64_t gain) {
        for (const Drawn& d : snake.paddles) image.put(p.ink + d.paddle * cells, p.half, d.place, gain);
    };
    for (const Snake& snake : scene.snakes) paint(snake, c.target_gain);
    for (const Snake& snake : scene.draw_distractors()) paint(snake, c.distractor_gain);
    int from = int(random.below(2)), to = label ? from : 1 - from;
    Point ends[2] = {scene.snakes[from].paddles.front().place, scene.snakes[to].paddles.back().place};
    for (int i = 0; i < 2; i++) {
        image.put(c.marker, c.marker_half, ends[i], c.marker_gain);
        c.markers[4 * number + 2 * i] = ends[i].y;
        c.markers[4 * number + 2 * i + 1] = ends[i].x;
    }
    stretch(c, image, c.pixels + number * c.size * c.size);
    c.labels[number] = uint8_t(label);
    c.tries[number] = scene.tries;
}

}  // namespace

extern "C" {

int64_t tsla_abi() {
    return sizeof(Call) + sizeof(Paddles);
}

void tsla_pathfinder(const Call* call) {
#pragma omp parallel for num_threads(call->threads) schedule(dynamic)
    for (int64_t number = 0; number < call->count; number++) make(*call, number);
}
}
