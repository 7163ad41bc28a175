// Attention of decoding rows: one new token each, over the keys and values that lie in a cache.

#include <cmath>

#include "matrix.hpp"
#include "scratch.hpp"

// Where things lie, in floats: of the queries, a token and a head; of the cache, the values after the keys, a row, a head.
struct Places {
    int64_t token, head, values, row, cached_head;
};

struct Entries {
    const int32_t *tokens, *rows, *lengths;  // token of the line, row of the cache, positions to look at
    int32_t count;
};

namespace {

thread_local Scratch own_scores;

constexpr int TOGETHER = 4;       // positions whose sums are built at once, for at most three queries
constexpr int64_t STRETCH = 128;  // positions whose values stay in the first cache

// The products of M queries, `q_row` apart, with P keys.
template <int M, int P>
void scores_of(const float* q, int64_t q_row, const float* keys, int dim, float scale, float* to, int64_t to_row) {
    Floats sums[M][P] = {};
    for (int d = 0; d < dim; d += LANES) {
        Floats right[P];
        for (int p = 0; p < P; p++) right[p] = load(keys + p * dim + d);
        for (int m = 0; m < M; m++) {
            Floats left = load(q + m * q_row + d);
            for (int p = 0; p < P; p++) sums[m][p] += left * right[p];
        }
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) to[m * to_row + p] = sum_of(sums[m][p]) * scale;
}

template <int M>
void all_scores(const float* q, int64_t q_row, const float* keys, int dim, int64_t count, float scale, float* to,
                int64_t to_row) {
    int64_t p = 0;
    for (; p + TOGETHER <= count; p += TOGETHER)
        scores_of<M, TOGETHER>(q, q_row, keys + p * dim, dim, scale, to + p, to_row);
    for (; p < count; p++) scores_of<M, 1>(q, q_row, keys + p * dim, dim, scale, to + p, to_row);
}

// Scores become e^(score - peak); returns one over their sum.
float soften(float* line, int64_t count) {
    int64_t end = padded(count);
    for (int64_t p = count; p < end; p++) line[p] = -INFINITY;
    Floats high = spread(-INFINITY), total = {};
    for (int64_t p = 0; p < end; p += LANES) high = larger(high, load(line + p));
    float peak = largest_of(high);
    for (int64_t p = 0; p < end; p += LANES) {
        Floats grown = exponential(load(line + p) - peak);
        store(line + p, grown);
        total += grown;
    }
    return 1.0f / sum_of(total);
}

void attend(const float* q, int64_t q_row, int group, const float* keys, const float* values, int dim, int64_t count,
            float scale, float* out) {
    int64_t line = padded(count);
    float* scores = own_scores.floats(group * line);
    int m = 0;
    for (; m + 3 <= group; m += 3)
        all_scores<3>(q + m * q_row, q_row, keys, dim, count, scale, scores + m * line, line);
    for (; m < group; m++) all_scores<1>(q + m * q_row, q_row, keys, dim, count, scale, scores + m * line, line);
    for (m = 0; m < group; m++) {
        float times = soften(scores + m * line, count);
        for (int64_t p = 0; p < line; p += LANES) store(scores + m * line + p, load(scores + m * line + p) * times);
    }
    for (int64_t p = 0; p < count; p += STRETCH) {
        int here = (int)(count - p < STRETCH ? count - p : STRETCH);
        multiply(group, dim, here, scores + p, line, 1, values + p * dim, dim, out, dim, p > 0);
    }
}

}  // namespace

// `dim` is whole vectors. out [tokens, kv_heads * group * dim]; rows of other tokens stay as they are.
EXPORT void decode_attention_float32(const float* q, const float* cache, float* out, const Places* places,
                                     const Entries* entries, int kv_heads, int group, int dim, float scale,
                                     int window, int threads) {
    int units = entries->count * kv_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (units > 1)
    for (int unit = 0; unit < units; unit++) {
        int entry = unit / kv_heads, head = unit % kv_heads;
        int64_t token = entries->tokens[entry], length = entries->lengths[entry];
        int64_t low = length > window ? length - window : 0;
        const float* keys = cache + entries->rows[entry] * places->row + head * places->cached_head + low * dim;
        attend(q + token * places->token + head * group * places->head, places->head, group, keys,
               keys + places->values, dim, length - low, scale, out + (token * kv_heads + head) * group * dim);
    }
}
