// Norms over maps that stand as planes, (channels, pixels), each plane contiguous.
//
// The small maps of a lite residual stand so: a group of a GroupNorm is then one contiguous range, of any
// number of channels, and every loop runs over successive elements.
#pragma once

#include "norms.h"

namespace tinytl {

constexpr long CHUNK = 1024;  // elements summed in T; the sums of chunks are added in double

// The sum of term(i) over i below n.
template <typename T, class F>
TINYTL_INLINE double sum_over(long n, F&& term) {
  double total = 0;
  for (long start = 0; start < n; start += CHUNK) {
    const long stop = smaller_of(start + CHUNK, n);
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (long i = start; i < stop; i++) part += term(i);
    total += part;
  }
  return total;
}

template <typename T>
double sum_of(const T* x, long n) {
  return sum_over<T>(n, [&](long i) { return x[i]; });
}

template <typename T>
double squares_about(const T* x, long n, T mean) {
  return sum_over<T>(n, [&](long i) { return (x[i] - mean) * (x[i] - mean); });
}

// Writes mean and 1 / standard deviation of each group of an image's channels, for each channel.
template <typename T>
void write_map_statistics(const T* x, const Norm<T>& norm, long image, long area) {
  if (norm.stored()) return;
  const long count = norm.per_group * area;
  for (long c = 0; c < norm.channels; c += norm.per_group) {
    const double mean = sum_of(x + c * area, count) / count;
    const double variance = squares_about(x + c * area, count, T(mean)) / count;
    for (long i = c; i < c + norm.per_group; i++) {
      norm.mean[image * norm.channels + i] = T(mean);
      norm.rstd[image * norm.channels + i] = T(1 / std::sqrt(variance + norm.eps));
    }
  }
}

// How one channel of an image is normalised: to x * factor + offset.
template <typename T>
struct PlaneNorm {
  T mean, rstd, factor, offset;

  PlaneNorm(const Norm<T>& norm, long image, long channel) {
    const long at = (norm.stored() ? 0 : image * norm.channels) + channel;
    mean = norm.mean[at];
    rstd = norm.stored() ? T(1 / std::sqrt(norm.variance[at] + norm.eps)) : norm.rstd[at];
    factor = norm.scale[channel] * rstd;
    offset = norm.shift[channel] - mean * factor;
  }
};

// out = clamp(x * factor + offset), for all planes of an image.
template <typename T>
void activate_map(const T* x, const Norm<T>& norm, long image, long area, T* out) {
  const T low = T(norm.act.low), high = T(norm.act.high);
  for (long c = 0; c < norm.channels; c++) {
    const PlaneNorm<T> own(norm, image, c);
#pragma omp simd
    for (long i = c * area; i < (c + 1) * area; i++) {
      const T z = x[i] * own.factor + own.offset;
      out[i] = z < low ? low : (z > high ? high : z);
    }
  }
}

// Turns g, the gradient with respect to the activation's output, into that with respect to the norm's input
// x, in place, and writes the image's gradients with respect to scale and shift.
//
// With h = gated g * scale, it is rstd * (h - mean(h) - normed * mean(h * normed)), means over a group.
template <typename T>
void norm_map_backward(T* g, const T* x, const Norm<T>& norm, long image, long area) {
  const T low = T(norm.act.low), high = T(norm.act.high);
  T* grad_scale = norm.grad_scale + image * norm.grad_step;
  T* grad_shift = norm.grad_shift + image * norm.grad_step;
  const long per_group = norm.stored() ? 1 : norm.per_group;
  const double per_value = norm.stored() ? 0 : 1.0 / (per_group * area);  // stored statistics are constants
  for (long first = 0; first < norm.channels; first += per_group) {
    double mean_h = 0, mean_h_normed = 0;
    for (long c = first; c < first + per_group; c++) {
      const PlaneNorm<T> own(norm, image, c);
      T* grad = g + c * area;
      const T* input = x + c * area;
#pragma omp simd
      for (long i = 0; i < area; i++) {
        const T z = input[i] * own.factor + own.offset;
        grad[i] = z > low && z < high ? grad[i] : T(0);
      }
      const double sum = sum_of(grad, area);
      const double along =
          sum_over<T>(area, [&](long i) { return grad[i] * (input[i] - own.mean); }) * own.rstd;
      grad_shift[c] = T(sum);
      grad_scale[c] = T(along);
      mean_h += norm.scale[c] * sum * per_value;
      mean_h_normed += norm.scale[c] * along * per_value;
    }
    for (long c = first; c < first + per_group; c++) {
      const PlaneNorm<T> own(norm, image, c);
      T* grad = g + c * area;
      const T* input = x + c * area;
      const T constant = T(mean_h) * own.rstd, slope = T(mean_h_normed) * own.rstd * own.rstd;
#pragma omp simd
      for (long i = 0; i < area; i++)
        grad[i] = grad[i] * own.factor - constant - (input[i] - own.mean) * slope;
    }
  }
}

}  // namespace tinytl
