// Causal attention over a line of texts without padding, forward and backward, rotary embeddings inside.
//
// The line is a forest of segments (see layout.py). The tokens that a segment sees, its ancestors' and then its own, are
// in the order of their positions 0, 1, 2, ..., so a column of the scores is a position. Work is split into parts: some
// segments of one tree (owned, their queries run here) with all their ancestors. A segment that several parts see is
// shared: its gradient is summed over the parts in their order, whatever thread ran them, so that bits never depend on
// the number of threads. Scores live for a few queries at a time: memory grows with the length of a text, not its square.

#include <cmath>

#include "matrix.hpp"
#include "scratch.hpp"

struct Forest {
    const int32_t *starts, *lengths, *depths;  // of a segment: first token, tokens, position of the first token
    const int32_t* part_starts;                // [parts + 1] into the members
    const int32_t *members, *parents, *owned;  // segment, index of its parent in the part or -1, 1 where owned
    const int32_t* partials;                   // where a shared member's sums go, in tokens; -1 for others
    const int32_t *shared, *shared_starts;     // shared segments; [shared + 1] into the copies
    const int32_t* copies;                     // where the sums of each part for that segment lie, in tokens
    int32_t parts, shared_count, partial_tokens;
};

struct Shape {
    int32_t heads, kv_heads, dim, window;  // window: a large number where there is none
    float scale;
};

namespace {

constexpr int AHEAD = 4;  // tokens

thread_local Scratch own_scratch, own_partials;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Ask for a head's numbers before they are needed: tokens lie pages apart, where the processor does not look ahead.
template <bool WRITE, class T>
inline void expect(const T* head, int dim) {
    for (int i = 0; i < dim; i += 64 / (int)sizeof(T)) __builtin_prefetch(head + i, WRITE);
}

// A vector of one head turned by its position (Su et al. 2021, halves as in transformers), times `times`.
inline void turn(float* __restrict to, const float* __restrict x, const float* __restrict cos,
                 const float* __restrict sin, int half, float times) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        to[i] = (a * cos[i] - b * sin[i]) * times;
        to[i + half] = (b * cos[i + half] + a * sin[i + half]) * times;
    }
}

// The transpose of `turn`: from the gradient after the rotation to that before it.
inline void turn_back(float* __restrict to, const float* __restrict g, const float* __restrict cos,
                      const float* __restrict sin, int half, float times) {
    for (int i = 0; i < half; i++) {
        float a = g[i], b = g[i + half];
        to[i] = (a * cos[i] + b * sin[i + half]) * times;
        to[i + half] = (b * cos[i + half] - a * sin[i]) * times;
    }
}

// One segment of a part, its keys and values as the products want them: by token, and transposed [dim, padded tokens].
struct Member {
    int start, length, depth, parent;
    int64_t wide;
    float *keys, *keys_across, *values, *values_across, *key_sums, *value_sums;
};

template <class T>
struct Unit {
    const Forest& forest;
    const Shape& shape;
    const T* qkv;
    const float *cos, *sin;
    int head;  // of keys and values
    int part, count, group, dim, row;
    int size;         // queries of each head in a block
    int64_t columns;  // of a row of scores
    int64_t width;  // padded dim
    bool backward;
    Member* members;
    int* path;
    float *queries, *scores, *results, *gradients, *grades, *one;

    Unit(const Forest& forest, const Shape& shape, const T* qkv, const float* cos, const float* sin, int part, int head,
         bool backward)
        : forest(forest), shape(shape), qkv(qkv), cos(cos), sin(sin), head(head), part(part), backward(backward) {
        count = forest.part_starts[part + 1] - forest.part_starts[part];
        group = shape.heads / shape.kv_heads;
        dim = shape.dim;
        row = (shape.heads + 2 * shape.kv_heads) * dim;
        width = padded(dim);
        prepare();
    }

    void prepare() {
        const int32_t* which = forest.members + forest.part_starts[part];
        const int32_t* parents = forest.parents + forest.part_starts[part];
        int64_t floats = 0, longest = 0;
        for (int i = 0; i < count; i++) {
            int64_t n = forest.lengths[which[i]];
            floats += n * width * (backward ? 4 : 1) + padded(n) * width * (backward ? 2 : 1);
            longest = most(longest, forest.depths[which[i]] + n);
        }
        columns = padded(longest) + LANES;
        size = (int)most(1, least(most(2, least(12, 24 / group)), (1 << 16) / (columns * group)));
        int64_t rows = (int64_t)size * group;
        size_t head_room = (count * (sizeof(Member) + sizeof(int)) + 255) / 256 * 64;
        float* memory = own_scratch.floats(head_room + floats + rows * (columns * (backward ? 2 : 1) + 3 * width) +
                                           2 * width + 64);
        members = (Member*)memory;
        path = (int*)(members + count);
        memory += head_room;
        auto take = [&](int64_t n) {
            float* found = memory;
            memory += n;
            return found;
        };
        for (int i = 0; i < count; i++) {
            Member& m = members[i];
            int n = forest.lengths[which[i]];
            m = {forest.starts[which[i]], n, forest.depths[which[i]], parents[i], padded(n)};
            m.keys_across = take(m.wide * width);
            m.values = take(n * width);
            if (backward) {
                m.keys = take(n * width);
                m.values_across = take(m.wide * width);
                m.key_sums = take(n * width);
                m.value_sums = take(n * width);
                memset(m.key_sums, 0, 2 * n * width * sizeof(float));
            }
        }
        queries = take(rows * width);
        results = take(rows * width);
        gradients = take(rows * width);
        scores = take(rows * columns);
        if (backward) grades = take(rows * columns);
        one = take(2 * width);
        for (int i = 0; i < count; i++) fetch(members[i]);
    }

    const float* cos_at(int position) const { return cos + (int64_t)position * dim; }
    const float* sin_at(int position) const { return sin + (int64_t)position * dim; }

    static void across(float* to, int64_t wide, int column, const float* from, int n) {
        for (int d = 0; d < n; d++) to[d * wide + column] = from[d];
    }

    void fetch(Member& m) {
        for (int64_t d = 0; d < width; d++) {
            store(m.keys_across + d * m.wide + m.wide - LANES, Floats{});
            if (backward) store(m.values_across + d * m.wide + m.wide - LANES, Floats{});
        }
        for (int i = 0; i < m.length; i++) {
            const T* token = qkv + (int64_t)(m.start + i) * row + (shape.heads + head) * dim;
            expect<false>(token + AHEAD * row, dim);
            expect<false>(token + AHEAD * row + shape.kv_heads * dim, dim);
            read_row(one, token, dim);
            float* key = backward ? m.keys + i * width : one + width;
            if (width > dim) memset(key + width - LANES, 0, LANES * sizeof(float));
            turn(key, one, cos_at(m.depth + i), sin_at(m.depth + i), dim / 2, 1.0f);
            across(m.keys_across, m.wide, i, key, (int)width);
            float* value = m.values + i * width;
            read_row(value, token + shape.kv_heads * dim, dim);
            if (backward) across(m.values_across, m.wide, i, value, (int)width);
        }
    }

    // The queries of tokens [from, to) of a member, row = token * group + head, turned and scaled.
    void fetch_queries(const Member& m, int from, int to) {
        for (int i = from, r = 0; i < to; i++)
            for (int g = 0; g < group; g++, r++) {
                float* query = queries + r * width;
                const T* from_row = qkv + (int64_t)(m.start + i) * row + (head * group + g) * dim;
                expect<false>(from_row + AHEAD * row, dim);
                read_row(one, from_row, dim);
                if (width > dim) memset(query + width - LANES, 0, LANES * sizeof(float));
                turn(query, one, cos_at(m.depth + i), sin_at(m.depth + i), dim / 2, shape.scale);
            }
    }

    // Members from the root to `index`.
    int walk(int index) {
        int steps = 0;
        for (int i = index; i >= 0; i = members[i].parent) steps++;
        for (int i = index, k = steps; i >= 0; i = members[i].parent) path[--k] = i;
        return steps;
    }

    // What a block of queries sees of one member: tokens [first, last), first on a whole vector.
    struct View {
        const Member* m;
        int first, last;
    };

    template <class Act>
    void over(int steps, int own, int to, int64_t low, Act act) {
        for (int k = 0; k < steps; k++) {
            const Member& m = members[path[k]];
            int last = path[k] == own ? to : m.length;
            if (m.depth + last > low) act(View{&m, (int)most(0, low - m.depth) / LANES * LANES, last});
        }
    }

    // left [rows, dim] times keys or values across, into `into` [rows, columns]. A view's overhang is written over by the
    // next one's columns, or masked.
    void against(const View& seen, int rows, const float* left, const float* right, float* into, int64_t columns) {
        multiply(rows, (int)padded(seen.last - seen.first), dim, left, width, 1, right + seen.first, seen.m->wide,
                 into + seen.m->depth + seen.first, columns, false);
    }

    void forward_member(int own, T* out, float* lse) {
        const Member& m = members[own];
        int steps = walk(own);
        for (int from = 0; from < m.length; from += size) {
            int to = (int)least(m.length, from + size), rows = (to - from) * group;
            int64_t low = most(0, (int64_t)m.depth + from - shape.window + 1);
            int64_t base = low / LANES * LANES, end = padded(m.depth + to);
            fetch_queries(m, from, to);
            for (int i = from; i < to; i++)
                expect<true>(out + ((int64_t)(m.start + i) * shape.heads + head * group) * dim, group * dim);
            over(steps, own, to, low,
                 [&](const View& seen) { against(seen, rows, queries, seen.m->keys_across, scores, columns); });
            for (int r = 0; r < rows; r++) {
                int token = from + r / group, top = m.depth + token + 1;
                int64_t bottom = most(0, top - (int64_t)shape.window);
                float* line = scores + r * columns;
                float sum, peak = soften(line, base, bottom, top, end, sum);
                lse[(int64_t)(m.start + token) * shape.heads + head * group + r % group] = peak + logf(sum);
                gradients[r] = 1.0f / sum;
            }
            bool add = false;
            over(steps, own, to, low, [&](const View& seen) {
                int64_t start = most(0, base - seen.m->depth);
                multiply(rows, (int)width, seen.last - (int)start, scores + seen.m->depth + start, columns, 1,
                         seen.m->values + start * width, width, results, width, add);
                add = true;
            });
            for (int r = 0; r < rows; r++) {
                int64_t token = m.start + from + r / group;
                write_row(out + (token * shape.heads + head * group + r % group) * dim, results + r * width, dim,
                          gradients[r]);
            }
        }
    }

    // The scores from column `c` on, -inf where a query does not look.
    static Floats masked(const float* line, int64_t c, int64_t bottom, int64_t top) {
        Floats x = load(line + c);
        if (c >= bottom && c + LANES <= top) return x;
        Ints column = COUNTED + (int32_t)c;
        Ints inside = (column >= (int32_t)bottom) & (column < (int32_t)top);
        return inside ? x : spread(-INFINITY);
    }

    // Scores in columns [bottom, top) become e^(score - peak), all others in [base, end) zero; returns the peak.
    static float soften(float* line, int64_t base, int64_t bottom, int64_t top, int64_t end, float& sum) {
        Floats high = spread(-INFINITY), total = {};
        for (int64_t c = base; c < end; c += LANES) {
            Floats x = masked(line, c, bottom, top);
            store(line + c, x);
            high = larger(high, x);
        }
        float peak = largest_of(high);
        for (int64_t c = base; c < end; c += LANES) {
            Floats grown = exponential(load(line + c) - peak);
            store(line + c, grown);
            total += grown;
        }
        sum = sum_of(total);
        return peak;
    }

    void backward_member(int own, const T* dout, const T* out, const float* lse, T* dqkv) {
        const Member& m = members[own];
        int steps = walk(own);
        for (int from = 0; from < m.length; from += size) {
            int to = (int)least(m.length, from + size), rows = (to - from) * group;
            int64_t low = most(0, (int64_t)m.depth + from - shape.window + 1);
            int64_t base = low / LANES * LANES, end = padded(m.depth + to);
            fetch_queries(m, from, to);
            for (int r = 0; r < rows; r++) {
                int64_t token = m.start + from + r / group;
                int64_t place = (token * shape.heads + head * group + r % group) * dim;
                expect<false>(dout + place + AHEAD * shape.heads * dim, dim);
                expect<false>(out + place, dim);
                expect<true>(dqkv + token * row + (head * group + r % group) * dim, dim);
                read_row(gradients + r * width, dout + place, dim);
            }
            over(steps, own, to, low, [&](const View& seen) {
                against(seen, rows, queries, seen.m->keys_across, scores, columns);
                against(seen, rows, gradients, seen.m->values_across, grades, columns);
            });
            for (int r = 0; r < rows; r++) {
                int token = from + r / group, top = m.depth + token + 1;
                int64_t bottom = most(0, top - (int64_t)shape.window), place = (int64_t)(m.start + token) * shape.heads;
                place += head * group + r % group;
                read_row(one, out + place * dim, dim);
                grade(scores + r * columns, grades + r * columns, base, bottom, top, end, lse[place],
                      gradients + r * width);
            }
            bool add = false;
            over(steps, own, to, low, [&](const View& seen) {
                int64_t start = most(0, base - seen.m->depth), n = seen.last - start, at = seen.m->depth + start;
                const Member& s = *seen.m;
                multiply(rows, (int)width, (int)n, grades + at, columns, 1, s.keys + start * width, width, results,
                         width, add);
                add = true;
                multiply((int)n, (int)width, rows, grades + at, 1, columns, queries, width, s.key_sums + start * width,
                         width, true);
                multiply((int)n, (int)width, rows, scores + at, 1, columns, gradients, width,
                         s.value_sums + start * width, width, true);
            });
            for (int r = 0; r < rows; r++) {
                int i = from + r / group;
                turn_back(one, results + r * width, cos_at(m.depth + i), sin_at(m.depth + i), dim / 2, shape.scale);
                write_row(dqkv + (int64_t)(m.start + i) * row + (head * group + r % group) * dim, one, dim, 1.0f);
            }
        }
    }

    // Scores become probabilities, and `slopes`, the gradients of the probabilities, those of the scores.
    void grade(float* line, float* slopes, int64_t base, int64_t bottom, int64_t top, int64_t end, float lse,
               const float* dout) {
        Floats product = {};
        for (int64_t d = 0; d < width; d += LANES) product += load(one + d) * load(dout + d);
        float delta = sum_of(product);
        for (int64_t c = base; c < end; c += LANES) {
            Floats p = exponential(masked(line, c, bottom, top) - lse);
            store(line + c, p);
            store(slopes + c, p * (load(slopes + c) - delta));
        }
    }

    void leave(T* dqkv, float* partials) {
        const int32_t* places = forest.partials + forest.part_starts[part];
        for (int k = 0; k < count; k++) {
            const Member& m = members[k];
            if (places[k] < 0) {
                write_sums(m.start, m.depth, m.length, m.key_sums, m.value_sums, width, dqkv);
                continue;
            }
            float* to = partials + (int64_t)places[k] * shape.kv_heads * 2 * width + (int64_t)head * m.length * 2 * width;
            memcpy(to, m.key_sums, 2 * m.length * width * sizeof(float));
        }
    }

    void write_sums(int start, int depth, int n, const float* keys, const float* values, int64_t stride, T* dqkv) {
        for (int i = 0; i < n; i++) {
            T* token = dqkv + (int64_t)(start + i) * row + (shape.heads + head) * dim;
            turn_back(one, keys + i * stride, cos_at(depth + i), sin_at(depth + i), dim / 2, 1.0f);
            write_row(token, one, dim, 1.0f);
            write_row(token + shape.kv_heads * dim, values + i * stride, dim, 1.0f);
        }
    }
};

template <class T>
void forward(const T* qkv, T* out, float* lse, const float* cos, const float* sin, const Forest* forest,
             const Shape* shape, int threads) {
    int units = forest->parts * shape->kv_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (units > 1)
    for (int unit = 0; unit < units; unit++) {
        Unit<T> at(*forest, *shape, qkv, cos, sin, unit / shape->kv_heads, unit % shape->kv_heads, false);
        const int32_t* owned = forest->owned + forest->part_starts[at.part];
        for (int k = 0; k < at.count; k++)
            if (owned[k]) at.forward_member(k, out, lse);
    }
}

// The copies of a shared segment's gradient, summed in the order of the parts.
template <class T>
void gather(const Forest& forest, const Shape& shape, const float* partials, int index, int head, const float* cos,
            const float* sin, T* dqkv) {
    int segment = forest.shared[index], n = forest.lengths[segment], dim = shape.dim, depth = forest.depths[segment];
    int64_t width = padded(dim), size = 2 * n * width, row = (shape.heads + 2 * shape.kv_heads) * dim;
    float* sums = own_scratch.floats(size + width);
    memset(sums, 0, size * sizeof(float));
    for (int c = forest.shared_starts[index]; c < forest.shared_starts[index + 1]; c++) {
        const float* copy = partials + (int64_t)forest.copies[c] * shape.kv_heads * 2 * width + head * size;
        for (int64_t i = 0; i < size; i += LANES) store(sums + i, load(sums + i) + load(copy + i));
    }
    float* one = sums + size;
    for (int i = 0; i < n; i++) {
        T* token = dqkv + (forest.starts[segment] + i) * row + (shape.heads + head) * dim;
        turn_back(one, sums + i * width, cos + (int64_t)(depth + i) * dim, sin + (int64_t)(depth + i) * dim, dim / 2,
                  1.0f);
        write_row(token, one, dim, 1.0f);
        write_row(token + shape.kv_heads * dim, sums + (n + i) * width, dim, 1.0f);
    }
}

template <class T>
void backward(const T* dout, const T* qkv, const T* out, const float* lse, T* dqkv, const float* cos, const float* sin,
              const Forest* forest, const Shape* shape, int threads) {
    int units = forest->parts * shape->kv_heads, rest = forest->shared_count * shape->kv_heads;
    float* partials = own_partials.floats((size_t)forest->partial_tokens * shape->kv_heads * 2 * padded(shape->dim) + 64);
#pragma omp parallel num_threads(threads) if (units > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int unit = 0; unit < units; unit++) {
            Unit<T> at(*forest, *shape, qkv, cos, sin, unit / shape->kv_heads, unit % shape->kv_heads, true);
            const int32_t* owned = forest->owned + forest->part_starts[at.part];
            for (int k = 0; k < at.count; k++)
                if (owned[k]) at.backward_member(k, dout, out, lse, dqkv);
            at.leave(dqkv, partials);
        }
#pragma omp for schedule(dynamic, 1)
        for (int unit = 0; unit < rest; unit++)
            gather(*forest, *shape, partials, unit / shape->kv_heads, unit % shape->kv_heads, cos, sin, dqkv);
    }
}

}  // namespace

#define ATTENTION(T, NAME)                                                                                            \
    EXPORT void attention_forward_##NAME(const T* qkv, T* out, float* lse, const float* cos, const float* sin,        \
                                         const Forest* forest, const Shape* shape, int threads) {                     \
        forward(qkv, out, lse, cos, sin, forest, shape, threads);                                                     \
    }                                                                                                                 \
    EXPORT void attention_backward_##NAME(const T* dout, const T* qkv, const T* out, const float* lse, T* dqkv,       \
                                          const float* cos, const float* sin, const Forest* forest,                   \
                                          const Shape* shape, int threads) {                                          \
        backward(dout, qkv, out, lse, dqkv, cos, sin, forest, shape, threads);                                        \
    }

ATTENTION(float, float32)
ATTENTION(bfloat16, bfloat16)
