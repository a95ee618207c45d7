// Average pooling, and upsampling by bilinear or nearest interpolation, of maps that stand as planes.
#pragma once

#include "vectors.h"

namespace tinytl {

// --- pooling ---------------------------------------------------------------------------------------

// Means of squares of `factor` x `factor` pixels of a row of squares; x is the first pixel's row, `width`
// long, and `count` squares are taken.
template <typename T>
TINYTL_INLINE void pool_row(const T* x, long width, long factor, long count, T* out) {
  if (factor == 1) {
    std::memcpy(out, x, count * sizeof(T));
  } else if (factor == 2) {
    const T *upper = x, *lower = x + width;
    for (long i = 0; i < count; i++)
      out[i] = T(0.25) * ((upper[2 * i] + upper[2 * i + 1]) + (lower[2 * i] + lower[2 * i + 1]));
  } else {
    const T share = T(1) / (factor * factor);
    for (long i = 0; i < count; i++) {
      T sum = 0;
      for (long y = 0; y < factor; y++)
        for (long j = 0; j < factor; j++) sum += x[y * width + i * factor + j];
      out[i] = sum * share;
    }
  }
}

// Adds the gradient of the means to the pixels of the squares.
template <typename T>
TINYTL_INLINE void add_pooled_row(const T* grad, long width, long factor, long count, T* grad_x) {
  if (factor == 2) {
    T *upper = grad_x, *lower = grad_x + width;
    for (long i = 0; i < count; i++) {
      const T share = T(0.25) * grad[i];
      upper[2 * i] += share, upper[2 * i + 1] += share;
      lower[2 * i] += share, lower[2 * i + 1] += share;
    }
    return;
  }
  const T share = T(1) / (factor * factor);
  for (long i = 0; i < count; i++)
    for (long y = 0; y < factor; y++)
      for (long j = 0; j < factor; j++) grad_x[y * width + i * factor + j] += grad[i] * share;
}

// --- upsampling ------------------------------------------------------------------------------------

// Rows of `from` values become rows of `to`, out[i] = sum over j of x[j] * weights[j][i]: a product with a
// matrix most of whose elements are zero. The lanes are the values of `out`.
template <typename T>
struct Band {
  long from, to, pitch;
  T* weights;             // (from, pitch)
  int32_t *first, *last;  // of the j that each vector of `out` needs

  Band(long from, long to, T*& buffer) : from(from), to(to), pitch(ceil_div(to, LANES<T>) * LANES<T>) {
    weights = take(buffer, from * pitch);
    first = reinterpret_cast<int32_t*>(take(buffer, to));
    last = reinterpret_cast<int32_t*>(take(buffer, to));
    std::memset(weights, 0, from * pitch * sizeof(T));
    for (long i = 0; i < ceil_div(to, LANES<T>); i++) first[i] = int32_t(from), last[i] = 0;
  }

  void add(long j, long i, T weight) {
    const long block = i / LANES<T>;
    weights[j * pitch + i] += weight;
    if (j < first[block]) first[block] = int32_t(j);
    if (j >= last[block]) last[block] = int32_t(j + 1);
  }

  // x (ROWS, from) -> out (ROWS, to)
  template <int ROWS>
  void apply(const T* x, T* out) const {
    for (long i = 0; i < to; i += LANES<T>) {
      const long block = i / LANES<T>;
      Vector<T> sums[ROWS] = {};
      for (long j = first[block]; j < last[block]; j++) {
        const Vector<T> weight = load(weights + j * pitch + i);
        TINYTL_UNROLL for (int row = 0; row < ROWS; row++) sums[row] += weight * x[row * from + j];
      }
      TINYTL_UNROLL for (int row = 0; row < ROWS; row++) store_part(out + row * to + i, sums[row], to - i);
    }
  }

  // x (rows, from) -> out (rows, to)
  void apply(const T* x, long rows, T* out) const {
    long row = 0;
    for (; row + 4 <= rows; row += 4) apply<4>(x + row * from, out + row * to);
    for (; row < rows; row++) apply<1>(x + row * from, out + row * to);
  }
};

// How pixel i of a side upsampled from `from` to `to` pixels is made: low + (high - low) * share of two.
struct Neighbours {
  long low, high;
  double share;

  static Neighbours of(long i, long from, long to, bool bilinear) {
    if (!bilinear) {
      // in float, as PyTorch does, so that the same pixel is the nearest
      const long at = from == to ? i : to == 2 * from ? i / 2 : long(float(i) * (float(from) / float(to)));
      const long nearest = smaller_of(at, from - 1);
      return {nearest, nearest, 0};
    }
    const double at = (i + 0.5) * from / to - 0.5, inside = at < 0 ? 0 : at;
    const long low = smaller_of(long(inside), from - 1);
    return {low, smaller_of(low + 1, from - 1), inside - low};
  }
};

constexpr long PLANES = 4;  // upsampled together, so that four rows are at hand

// Upsampling from (rows, columns) to (out_rows, out_columns). Rows are interpolated by products, columns by
// sums of whole rows.
template <typename T>
struct Upsampling {
  long rows, columns, out_rows, out_columns;
  Band<T> widen, narrow;  // a row: columns -> out_columns, and back
  int32_t *low, *high;    // (out_rows)
  T* share;               // (out_rows)
  int32_t *first, *last;  // (rows): the output rows that a row takes part in

  // Carves its tables from a buffer; lite_residual.py tells how much they take.
  Upsampling(long rows, long columns, long out_rows, long out_columns, bool bilinear, T*& buffer)
      : rows(rows), columns(columns), out_rows(out_rows), out_columns(out_columns),
        widen(columns, out_columns, buffer), narrow(out_columns, columns, buffer) {
    low = reinterpret_cast<int32_t*>(take(buffer, out_rows));
    high = reinterpret_cast<int32_t*>(take(buffer, out_rows));
    share = take(buffer, out_rows);
    first = reinterpret_cast<int32_t*>(take(buffer, rows));
    last = reinterpret_cast<int32_t*>(take(buffer, rows));
    for (long i = 0; i < out_columns; i++) {
      const Neighbours own = Neighbours::of(i, columns, out_columns, bilinear);
      widen.add(own.low, i, T(1 - own.share)), widen.add(own.high, i, T(own.share));
      narrow.add(i, own.low, T(1 - own.share)), narrow.add(i, own.high, T(own.share));
    }
    for (long y = 0; y < rows; y++) first[y] = int32_t(out_rows), last[y] = 0;
    for (long y = 0; y < out_rows; y++) {
      const Neighbours own = Neighbours::of(y, rows, out_rows, bilinear);
      low[y] = int32_t(own.low), high[y] = int32_t(own.high), share[y] = T(own.share);
      for (const long row : {own.low, own.high}) {
        first[row] = int32_t(smaller_of(first[row], y));
        last[row] = int32_t(y + 1);
      }
    }
  }

  // The share of an old row in a new one.
  TINYTL_INLINE T share_of(long row, long old) const {
    return (low[row] == old ? 1 - share[row] : T(0)) + (high[row] == old ? share[row] : T(0));
  }

  // Adds planes * factor + offset, upsampled, to `out`: affine(plane) tells both. `across` holds up to PLANES
  // planes (rows, out_columns).
  template <class F>
  void add(const T* planes, long count, F&& affine, T* across, T* out) const {
    widen.apply(planes, count * rows, across);
    for (long plane = 0; plane < count; plane++) {
      const auto [factor, offset] = affine(plane);
      for (long y = 0; y < out_rows; y++) {
        const T* upper = across + (plane * rows + low[y]) * out_columns;
        const T* lower = across + (plane * rows + high[y]) * out_columns;
        const T upper_share = (1 - share[y]) * factor, lower_share = share[y] * factor;
        T* target = out + (plane * out_rows + y) * out_columns;
        for (long i = 0; i < out_columns; i += LANES<T>) {
          const long n = out_columns - i;
          const Vector<T> sum = load_part(upper + i, n) * upper_share + load_part(lower + i, n) * lower_share;
          store_part(target + i, load_part(target + i, n) + (sum + offset), n);
        }
      }
    }
  }

  // The way back: grad (count, out_rows, out_columns) -> grad_planes (count, rows, columns), written.
  void backward(const T* grad, long count, T* across, T* grad_planes) const {
    for (long plane = 0; plane < count; plane++)
      for (long y = 0; y < rows; y++) {
        T* target = across + (plane * rows + y) * out_columns;
        for (long i = 0; i < out_columns; i += LANES<T>) {
          const T* source = grad + plane * out_rows * out_columns + i;
          Vector<T> sum = {};
          for (long row = first[y]; row < last[y]; row++)
            sum += load_part(source + row * out_columns, out_columns - i) * share_of(row, y);
          store_part(target + i, sum, out_columns - i);
        }
      }
    narrow.apply(across, count * rows, grad_planes);
  }
};

}  // namespace tinytl
