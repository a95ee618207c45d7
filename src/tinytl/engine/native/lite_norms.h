// A norm and the activation after it over planes, (channel, pixel), of one image: the activation is a clamp.
#pragma once

#include <tuple>

#include "plane_norms.h"

namespace tinytl {

// A channel is normalised to x * factor + offset.
template <typename T>
struct PlaneAffine {
  T mean, rstd, factor, offset;

  PlaneAffine(const Norm<T>& norm, long image, long channel) {
    std::tie(mean, rstd) = plane_normalisation(norm, image, channel);
    factor = norm.scale[channel] * rstd;
    offset = norm.shift[channel] - mean * factor;
  }
};

template <typename T>
void activate_planes(const Norm<T>& norm, long image, long area, const T* x, T* out) {
  const Clamp<T> act(norm.act);
  for (long channel = 0; channel < norm.channels; channel++) {
    const PlaneAffine<T> own(norm, image, channel);
    const T* plane = x + channel * area;
    T* target = out + channel * area;
    for (long i = 0; i < area; i += LANES<T>) {
      const Vector<T> z = load_part(plane + i, area - i) * own.factor + own.offset;
      store_part(target + i, act.value(z), area - i);
    }
  }
}

// Applies the activation's derivative to a plane of gradients g, in place; x is the norm's input. Returns the
// sums of the result, and of it times the centred input.
template <typename T>
std::pair<double, double> gate_plane(const Clamp<T>& act, const PlaneAffine<T>& own, long area, const T* x,
                                     T* g) {
  Wide<T> sums = {}, centred_sums = {};
  for (long i = 0; i < area; i += LANES<T>) {
    const Vector<T> value = load_part(x + i, area - i);
    const Vector<T> gated = act.gradient(load_part(g + i, area - i), value * own.factor + own.offset);
    store_part(g + i, gated, area - i);
    sums += widen<T>(gated);
    centred_sums += widen<T>(gated * (value - own.mean));
  }
  double sum = 0, centred_sum = 0;
  for (long i = 0; i < LANES<T>; i++) sum += sums[i], centred_sum += centred_sums[i];
  return {sum, centred_sum};
}

// Turns g, the gradient with respect to the activation's output, into that with respect to the norm's input
// x, in place, and writes the image's gradients with respect to scale and shift.
//
// With h = g * scale where the activation lets g pass, it is
//   rstd * (h - mean(h) - normed * mean(h * normed)), means over a group.
template <typename T>
void norm_act_planes_backward(const Norm<T>& norm, long image, long area, const T* x, T* g) {
  const Clamp<T> act(norm.act);
  T* grad_scale = norm.grad_scale + image * norm.grad_step;
  T* grad_shift = norm.grad_shift + image * norm.grad_step;
  const long per_group = norm.stored() ? 1 : norm.per_group;
  const double per_value = norm.stored() ? 0 : 1.0 / (per_group * area);  // stored statistics are constants
  for (long first = 0; first < norm.channels; first += per_group) {
    double mean_h = 0, mean_h_normed = 0;
    for (long c = first; c < first + per_group; c++) {
      const PlaneAffine<T> own(norm, image, c);
      const auto [sum, centred_sum] = gate_plane(act, own, area, x + c * area, g + c * area);
      grad_shift[c] = T(sum);
      grad_scale[c] = T(centred_sum * own.rstd);
      mean_h += norm.scale[c] * sum * per_value;
      mean_h_normed += norm.scale[c] * centred_sum * own.rstd * per_value;
    }
    for (long c = first; c < first + per_group; c++) {
      const PlaneAffine<T> own(norm, image, c);
      const T* plane = x + c * area;
      T* grad = g + c * area;
      const T constant = T(mean_h) * own.rstd, slope = T(mean_h_normed) * own.rstd * own.rstd;
      for (long i = 0; i < area; i += LANES<T>) {
        const Vector<T> centred = load_part(plane + i, area - i) - own.mean;
        const Vector<T> scaled = load_part(grad + i, area - i) * own.factor;
        store_part(grad + i, scaled - constant - centred * slope, area - i);
      }
    }
  }
}

}  // namespace tinytl
