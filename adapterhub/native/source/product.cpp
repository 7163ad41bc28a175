// y = x W^T for few rows, by a frozen W whose numbers are all bfloat16: half the bytes of float32, which is what few rows
// wait for, and the same result, since each number is widened again before it is multiplied.
//
// W lies in panels of PANEL of its rows. A panel holds, for each pair of columns, PANEL words of 32 bits: a row's two
// numbers, the first in the low half. So one load, a shift and a mask give two vectors of floats.

#include "vector.hpp"

namespace {

constexpr int PANEL = 2 * LANES;
#if defined(__AVX512F__)
constexpr int TALL = 12;  // rows at a time: TALL x 2 sums stay in registers
#else
constexpr int TALL = 6;
#endif
constexpr int BLOCK = 288;                       // pairs of columns whose panel stays in the first cache
constexpr int MOST_ROWS = 96;  // what of x is read again for each panel stays in the second cache
constexpr int64_t WORTH_THREADS = 1 << 15;

inline Floats lower(const int32_t* words) { return (Floats)(*(const Ints*)words << 16); }
inline Floats upper(const int32_t* words) { return (Floats)(*(const Ints*)words & (int32_t)0xffff0000); }

// y [M, PANEL] = or += x [M, 2 pairs (+ 1)] times one panel. With few rows, both columns of a pair get sums of their own:
// one sum would wait for itself.
template <int M>
void tile(const float* x, int64_t x_row, const int32_t* panel, int pairs, bool odd, float* y, int64_t y_row, bool add) {
    constexpr bool APART = M <= 3;
    Floats sums[M][2] = {}, others[APART ? M : 1][2] = {};
    for (int k = 0; k < pairs; k++, panel += PANEL) {
        // One column after the other: sums, one column's numbers and one of x fill the registers.
        Floats first[2] = {lower(panel), lower(panel + LANES)};
        for (int i = 0; i < M; i++) {
            Floats left = spread(x[i * x_row + 2 * k]);
            for (int j = 0; j < 2; j++) sums[i][j] += left * first[j];
        }
        Floats second[2] = {upper(panel), upper(panel + LANES)};
        for (int i = 0; i < M; i++) {
            Floats left = spread(x[i * x_row + 2 * k + 1]);
            for (int j = 0; j < 2; j++) (APART ? others[i % (APART ? M : 1)][j] : sums[i][j]) += left * second[j];
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < 2; j++) {
            Floats sum = APART ? sums[i][j] + others[i][j] : sums[i][j];
            if (odd) sum += spread(x[i * x_row + 2 * pairs]) * lower(panel + j * LANES);
            float* to = y + i * y_row + j * LANES;
            store(to, add ? load(to) + sum : sum);
        }
}

typedef void (*Tile)(const float*, int64_t, const int32_t*, int, bool, float*, int64_t, bool);
#if defined(__AVX512F__)
constexpr Tile TILES[] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>, tile<9>,
                          tile<10>, tile<11>, tile<12>};
#else
constexpr Tile TILES[] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
#endif

// One panel against some rows. They are cut evenly: 8 are 4 and 4, not 6 and 2.
void panel_product(const float* x, int rows, int depth, const int32_t* panel, float* y, int64_t y_row) {
    int parts = (rows + TALL - 1) / TALL;
    for (int from = 0; from < depth; from += 2 * BLOCK) {
        int here = depth - from < 2 * BLOCK ? depth - from : 2 * BLOCK;
        for (int part = 0; part < parts; part++) {
            int first = rows * part / parts, count = rows * (part + 1) / parts - first;
            TILES[count](x + (int64_t)first * depth + from, depth, panel + (int64_t)(from / 2) * PANEL, here / 2,
                         here % 2, y + first * y_row, y_row, from > 0);
        }
    }
}

}  // namespace

EXPORT int panel_rows() { return PANEL; }

// x [rows, depth], y [rows, columns]; `packed` as above, its last panel filled up with zeros. `room` holds
// [rows, PANEL] floats for that last panel where it is not full.
EXPORT void product_bfloat16(const float* x, const int32_t* packed, float* y, float* room, int rows, int depth,
                             int columns, int threads) {
    int panels = (columns + PANEL - 1) / PANEL, full = columns / PANEL;
    int64_t size = (int64_t)((depth + 1) / 2) * PANEL;
    for (int from = 0; from < rows; from += MOST_ROWS) {
        int here = rows - from < MOST_ROWS ? rows - from : MOST_ROWS;
        const float* left = x + (int64_t)from * depth;
        float* to = y + (int64_t)from * columns;
#pragma omp parallel for schedule(static) num_threads(threads) if (columns * (int64_t)depth > WORTH_THREADS)
        for (int p = 0; p < panels; p++) {
            bool whole = p < full;
            panel_product(left, here, depth, packed + p * size, whole ? to + p * PANEL : room, whole ? columns : PANEL);
            if (!whole)
                for (int r = 0; r < here; r++)
                    for (int c = full * PANEL; c < columns; c++)
                        to[(int64_t)r * columns + c] = room[r * PANEL + c - full * PANEL];
        }
    }
}
