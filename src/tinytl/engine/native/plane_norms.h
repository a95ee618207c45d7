// Norms over planes, (channel, pixel), of one image: the norm after the projection, which no activation
// follows.
#pragma once

#include "norms.h"

namespace tinytl {

constexpr long CHUNK = 1024;  // elements summed in T; the chunks' sums are added in double

// The sum of value(i) for i below n.
template <typename T, class F>
TINYTL_INLINE double sum_of(long n, F&& value) {
  double total = 0;
  for (long start = 0; start < n; start += CHUNK) {
    const long stop = smaller_of(start + CHUNK, n);
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (long i = start; i < stop; i++) part += value(i);
    total += part;
  }
  return total;
}

// Two sums over n elements. `values` is called with a function that loads from an array, a vector or, at the
// end, an element, and gives what is added to either sum. Some vectors are summed in T, their sums in double.
template <typename T, class F>
TINYTL_INLINE std::pair<double, double> two_sums(long n, F&& values) {
  constexpr long L = LANES<T>, STREAMS = 4, SPAN = 16 * STREAMS * L;
  double first = 0, second = 0;
  long at = 0;
  while (at + STREAMS * L <= n) {
    Vector<T> firsts[STREAMS] = {}, seconds[STREAMS] = {};
    for (const long stop = at + SPAN; at < stop && at + STREAMS * L <= n; at += STREAMS * L)
      TINYTL_UNROLL for (long i = 0; i < STREAMS; i++) {
        const auto [a, b] = values([&](const T* p) TINYTL_INLINE_LAMBDA { return load(p + at + i * L); });
        firsts[i] += a;
        seconds[i] += b;
      }
    const Vector<T> a = (firsts[0] + firsts[1]) + (firsts[2] + firsts[3]);
    const Vector<T> b = (seconds[0] + seconds[1]) + (seconds[2] + seconds[3]);
    for (long i = 0; i < L; i++) first += a[i], second += b[i];
  }
  for (; at < n; at++) {
    const auto [a, b] = values([&](const T* p) TINYTL_INLINE_LAMBDA { return p[at]; });
    first += a;
    second += b;
  }
  return {first, second};
}

// Writes mean and 1 / standard deviation of every group, for each channel. Sums are about the first value, so
// that nothing cancels.
template <typename T>
void plane_statistics(const Norm<T>& norm, long image, long area, const T* x) {
  const long count = norm.per_group * area;
  for (long channel = 0; channel < norm.channels; channel += norm.per_group) {
    const T *group = x + channel * area, first = group[0];
    const auto [sum, squares] = two_sums<T>(count, [&](auto&& load_from) TINYTL_INLINE_LAMBDA {
      const auto d = load_from(group) - first;
      return std::pair(d, d * d);
    });
    const double apart = sum / count;
    const T mean = T(first + apart), rstd = T(1 / std::sqrt(squares / count - apart * apart + norm.eps));
    for (long c = channel; c < channel + norm.per_group; c++) {
      norm.mean[image * norm.channels + c] = mean;
      norm.rstd[image * norm.channels + c] = rstd;
    }
  }
}

// Mean and 1 / standard deviation of a channel.
template <typename T>
std::pair<T, T> plane_normalisation(const Norm<T>& norm, long image, long channel) {
  if (norm.stored()) return {norm.mean[channel], T(1 / std::sqrt(norm.variance[channel] + norm.eps))};
  return {norm.mean[image * norm.channels + channel], norm.rstd[image * norm.channels + channel]};
}

template <typename T>
void normalize_planes(const Norm<T>& norm, long image, long area, const T* x, T* normed) {
  for (long channel = 0; channel < norm.channels; channel++) {
    const auto [mean, rstd] = plane_normalisation(norm, image, channel);
    const T* plane = x + channel * area;
    T *target = normed + channel * area, m = mean, r = rstd;
#pragma omp simd
    for (long i = 0; i < area; i++) target[i] = (plane[i] - m) * r;
  }
}

// out = normalised x * scale + shift, plus the shortcut `skip` if there is one; `normed`, if it is kept, is the
// normalised x. out may be x.
template <typename T>
void norm_planes(const Norm<T>& norm, long image, long area, const T* x, const T* skip, T* normed, T* out) {
  if (!norm.stored()) plane_statistics(norm, image, area, x);
  for (long channel = 0; channel < norm.channels; channel++) {
    const auto [mean, rstd] = plane_normalisation(norm, image, channel);
    const T m = mean, r = rstd, scale = norm.scale[channel], shift = norm.shift[channel];
    const T *plane = x + channel * area, *shortcut = skip + channel * area;
    T *kept = normed + channel * area, *target = out + channel * area;
    const auto value = [=](long i) { return (plane[i] - m) * r; };
    if (normed && skip) {
#pragma omp simd
      for (long i = 0; i < area; i++) kept[i] = value(i), target[i] = kept[i] * scale + shift + shortcut[i];
    } else if (normed) {
#pragma omp simd
      for (long i = 0; i < area; i++) kept[i] = value(i), target[i] = kept[i] * scale + shift;
    } else if (skip) {
#pragma omp simd
      for (long i = 0; i < area; i++) target[i] = value(i) * scale + shift + shortcut[i];
    } else {
#pragma omp simd
      for (long i = 0; i < area; i++) target[i] = value(i) * scale + shift;
    }
  }
}

// grad_x = the gradient with respect to the norm's input, from that with respect to its output. Writes those
// with respect to scale and shift. Without `normed`, allowed with stored statistics, that of the scale is 0.
template <typename T>
void norm_planes_backward(const Norm<T>& norm, long image, long area, const T* grad, const T* normed, T* grad_x) {
  T *grad_scale = norm.grad_scale + image * norm.grad_step, *grad_shift = norm.grad_shift + image * norm.grad_step;
  const long per_group = norm.stored() ? 1 : norm.per_group;
  for (long channel = 0; channel < norm.channels; channel += per_group) {
    double mean_grad = 0, mean_along = 0;  // of grad * scale, and of it times the normalised input
    for (long c = channel; c < channel + per_group; c++) {
      const T *g = grad + c * area, *n = normed + c * area;
      const auto [shift, scale] = two_sums<T>(area, [&](auto&& load_from) TINYTL_INLINE_LAMBDA {
        const auto value = load_from(g);
        return std::pair(value, normed ? value * load_from(n) : value - value);
      });
      grad_shift[c] = T(shift);
      grad_scale[c] = T(scale);
      mean_grad += norm.scale[c] * shift / (per_group * area);
      mean_along += norm.scale[c] * scale / (per_group * area);
    }
    for (long c = channel; c < channel + per_group; c++) {
      const T rstd = plane_normalisation(norm, image, c).second;
      const T factor = norm.scale[c] * rstd, along = T(mean_along) * rstd, constant = T(mean_grad) * rstd;
      const T *g = grad + c * area, *n = normed + c * area;
      T* target = grad_x + c * area;
      if (norm.stored()) {
#pragma omp simd
        for (long i = 0; i < area; i++) target[i] = g[i] * factor;
      } else {
#pragma omp simd
        for (long i = 0; i < area; i++) target[i] = g[i] * factor - n[i] * along - constant;
      }
    }
  }
}

}  // namespace tinytl
