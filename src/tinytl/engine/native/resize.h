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

// How a side of `from` pixels becomes one of `to`: pixel i is low + (high - low) * share of two old pixels.
// For the way back, an old pixel j gets weights[2 i], as low, and weights[2 i + 1], as high, of the gradients
// of the pixels i from first[j] to last[j].
template <typename T>
struct Axis {
  long from, to;
  int32_t *low, *high;    // (to)
  T* share;               // (to)
  int32_t *first, *last;  // (from), `last` not included

  // Carves its tables from a buffer; axis_size in native_lite_residual.py tells how much they take.
  Axis(long from, long to, bool bilinear, T*& buffer) : from(from), to(to) {
    low = reinterpret_cast<int32_t*>(take(buffer, to));
    high = reinterpret_cast<int32_t*>(take(buffer, to));
    share = take(buffer, to);
    first = reinterpret_cast<int32_t*>(take(buffer, from));
    last = reinterpret_cast<int32_t*>(take(buffer, from));
    for (long i = 0; i < to; i++) set(i, bilinear);
    for (long j = 0; j < from; j++) first[j] = int32_t(to), last[j] = 0;
    for (long i = 0; i < to; i++)
      for (const long j : {low[i], high[i]}) {
        if (i < first[j]) first[j] = int32_t(i);
        last[j] = int32_t(i + 1);
      }
  }

  // The weight of old pixel j in new pixel i, one of those from first[j] to last[j].
  TINYTL_INLINE T weight(long i, long j) const {
    return (low[i] == j ? 1 - share[i] : T(0)) + (high[i] == j ? share[i] : T(0));
  }

 private:
  void set(long i, bool bilinear) {
    if (!bilinear) {
      // in float, as PyTorch does, so that the same pixel is the nearest
      const long at = from == to ? i : to == 2 * from ? i / 2 : long(float(i) * (float(from) / float(to)));
      low[i] = high[i] = int32_t(smaller_of(at, from - 1));
      share[i] = 0;
      return;
    }
    const double at = (i + 0.5) * from / to - 0.5, inside = at < 0 ? 0 : at;
    low[i] = int32_t(smaller_of(long(inside), from - 1));
    high[i] = int32_t(smaller_of(low[i] + 1, from - 1));
    share[i] = T(inside - low[i]);
  }
};

// Adds a plane (rows.from, columns.from), upsampled, to one of (rows.to, columns.to). `across` holds the
// plane upsampled along its rows, (rows.from, columns.to).
template <typename T>
void add_upsampled(const Axis<T>& rows, const Axis<T>& columns, const T* x, T* across, T* out) {
  for (long y = 0; y < rows.from; y++) {
    const T* source = x + y * columns.from;
    T* target = across + y * columns.to;
    for (long i = 0; i < columns.to; i++) {
      const T low = source[columns.low[i]];
      target[i] = low + (source[columns.high[i]] - low) * columns.share[i];
    }
  }
  for (long y = 0; y < rows.to; y++) {
    const T *low = across + rows.low[y] * columns.to, *high = across + rows.high[y] * columns.to;
    const T share = rows.share[y];
    T* target = out + y * columns.to;
#pragma omp simd
    for (long i = 0; i < columns.to; i++) target[i] += low[i] + (high[i] - low[i]) * share;
  }
}

// The gradient with respect to that plane, written.
template <typename T>
void upsample_backward(const Axis<T>& rows, const Axis<T>& columns, const T* grad, T* across, T* grad_x) {
  for (long y = 0; y < rows.from; y++) {
    T* target = across + y * columns.to;
    std::memset(target, 0, columns.to * sizeof(T));
    for (long i = rows.first[y]; i < rows.last[y]; i++) {
      const T weight = rows.weight(i, y);
      const T* source = grad + i * columns.to;
#pragma omp simd
      for (long j = 0; j < columns.to; j++) target[j] += source[j] * weight;
    }
  }
  for (long y = 0; y < rows.from; y++)
    for (long x = 0; x < columns.from; x++) {
      T sum = 0;
      for (long i = columns.first[x]; i < columns.last[x]; i++)
        sum += across[y * columns.to + i] * columns.weight(i, x);
      grad_x[y * columns.from + x] = sum;
    }
}

}  // namespace tinytl
