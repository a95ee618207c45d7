// A network's end, forwards or backwards in one call: 1x1 convolution, norm, activation and the mean over the
// map. Its maps are computed a step of channels at a time, and again in the backward pass.
#include "pointwise.h"
#include "threads.h"
#include "weight_sums.h"

namespace tinytl {
namespace {

// The fields are set in Python, see head.py.
template <typename T>
struct Head {
  Weight<T> weight;
  Norm<T> norm;
  Packing packing;  // of the output channels
  long images, in, area, threads;
  long step, slice;  // lanes; a slice is what one product into the gradient of x sums
  // Elements of a thread's buffers: maps of a step, or backwards of a slice; weights; factors that are 1;
  // sums of a step and coefficients made of them; where the weight trains, or 0, sums of its gradient and rows
  // of it; and of all.
  long maps_size, weights_size, factors_size, sums_size, weight_sums_size, natural_size, scratch_size;
  Convolution<T> trained;  // the weight's own order and its gradient, which is null where none is needed
};

// One image.
template <typename T>
class HeadImage {
 public:
  HeadImage(const Head<T>& head, long image, const T* x, T* scratch)
      : head(head), image(image), x(x + image * head.in * head.area), maps(take(scratch, head.maps_size)),
        weights(take(scratch, head.weights_size)), factors(take(scratch, head.factors_size)),
        sums(take(scratch, head.sums_size)), weight_sums(take(scratch, head.weight_sums_size)),
        natural(take(scratch, head.natural_size)) {}

  void forward(T* out) const {
    out += image * head.packing.channels;
    Sums<T>* own = reinterpret_cast<Sums<T>*>(sums);
    for (long lane = 0; lane < head.packing.lanes(); lane += head.step) {
      const long count = smaller_of(head.step, head.packing.lanes() - lane);
      expand(lane, count, maps, head.norm.stored() ? nullptr : own);
      if (!head.norm.stored())
        for_units(lane, count, [&](long unit, long channel, long channels) {
          write_statistics<T>(own + (unit - lane) / L, head.norm, image, channel, channels, head.area);
        });
      for (long at = 0; at < count; at += L)
        store_part(out + head.packing.channel(lane + at), mean(lane + at, maps + at * head.area),
                   head.packing.used(lane + at, L));
    }
  }

  void backward(const T* grad, T* grad_x, Turns& turns) const {
    grad += image * head.packing.channels;
    if (grad_x) grad_x += image * head.in * head.area;
    for (long i = 0; i < head.factors_size; i++) factors[i] = 1;
    for (long first = 0; first < head.packing.lanes(); first += head.slice) {
      const long count = smaller_of(head.slice, head.packing.lanes() - first);
      for (long lane = first; lane < first + count; lane += head.step) {
        const long step = smaller_of(head.step, first + count - lane);
        T* y = maps + (lane - first) * head.area;
        backward_step(lane, step, grad, y);
        if (head.trained.grad_weight) add_weight_gradient(lane, step, y, turns);
      }
      if (!grad_x) continue;
      for_pairs<T>(ceil_div(head.in, L), [&]<int N>(long vector) {
        unpack_transposed<N, T>(head.weight, first, count, head.in, vector * L, factors, weights);
        plane_product<N, T>(maps, count, head.area, weights, grad_x + vector * L * head.area, head.in - vector * L,
                            first > 0);
      });
    }
  }

 private:
  static constexpr long L = LANES<T>;
  const Head<T>& head;
  const long image;
  const T* x;
  T *maps, *weights, *factors, *sums, *weight_sums, *natural;

  ChannelNorm<T> channel_norm(long lane) const {
    return {head.norm, image, head.packing.channel(lane), head.packing.used(lane, L)};
  }

  template <class F>
  void for_units(long lane, long count, F&& f) const {
    for (long unit = lane; unit < lane + count; unit += head.packing.unit_lanes)
      f(unit, head.packing.channel(unit), head.packing.used(unit, head.packing.unit_lanes));
  }

  void expand(long lane, long count, T* y, Sums<T>* own) const {
    for_pairs<T>(count / L, [&]<int N>(long vector) {
      unpack<N, T>(head.weight, lane + vector * L, head.in, weights);
      pack_product<N, T>(x, head.in, head.area, weights, y + vector * L * head.area, own ? own + vector : nullptr);
    });
  }

  Vector<T> mean(long lane, const T* y) const {
    const ChannelNorm<T> own = channel_norm(lane);
    const Vector<T> factor = own.factor(), offset = own.offset();
    Vector<T> total = {};
    with_activation<T>(head.norm.act, [&](const auto& activation) {
      for (long p = 0; p < head.area; p++) total += activation.value(load(y + p * L) * factor + offset);
    });
    return total / T(head.area);
  }

  // y = the gradient with respect to the convolution's output.
  void backward_step(long lane, long count, const T* grad, T* y) const {
    GradSums<T>* own_sums = reinterpret_cast<GradSums<T>*>(sums);
    Coefficients<T>* coefficients = reinterpret_cast<Coefficients<T>*>(own_sums + count / L);
    expand(lane, count, y, nullptr);
    for (long at = 0; at < count; at += L) {
      Vector<T> total = {}, total_centred = {};
      for_gradients(lane + at, grad, y + at * head.area, [&](const Vector<T>& centred, const Vector<T>& g) {
        total += g;
        total_centred += g * centred;
      });
      own_sums[at / L] = {widen<T>(total), widen<T>(total_centred)};
      coefficients[at / L] = Coefficients<T>{};
    }
    for_units(lane, count, [&](long unit, long channel, long channels) {
      const long vector = (unit - lane) / L;
      write_gradients<T>(own_sums + vector, head.norm, image, channel, channels, head.area, coefficients + vector);
    });
    for (long at = 0; at < count; at += L) {
      const Coefficients<T> c = coefficients[at / L];
      T* target = y + at * head.area;
      for_gradients(lane + at, grad, target, [&](const Vector<T>& centred, const Vector<T>& g) {
        store(target, g * c.factor + centred * c.along + c.constant);
        target += L;
      });
    }
  }

  // `grad` is the gradient with respect to the convolution's output, of a step.
  void add_weight_gradient(long lane, long count, const T* grad, Turns& turns) const {
    std::memset(weight_sums, 0, sizeof(T) * count * head.in);
    for_pairs<T>(count / L, [&]<int N>(long vector) {
      const long at = vector * L;
      add_pointwise_sums<N, T>(grad + at * head.area, x, head.in, head.area, weight_sums + at * head.in);
    });
    turns.take(image,
               [&] { add_sums_of_rows(head.trained, head.packing, lane, count, weight_sums, natural); });
  }

  // Calls f(the centred output of the convolution, the gradient with respect to the norm's output) for every
  // pixel of a vector of channels.
  template <class F>
  void for_gradients(long lane, const T* grad, const T* y, F&& f) const {
    const ChannelNorm<T> own = channel_norm(lane);
    const Vector<T> factor = own.factor();
    const Vector<T> share =
        load_part(grad + head.packing.channel(lane), head.packing.used(lane, L)) / T(head.area);
    with_activation<T>(head.norm.act, [&](const auto& activation) {
      for (long p = 0; p < head.area; p++) {
        const Vector<T> centred = load(y + p * L) - own.mean;
        f(centred, activation.gradient(share, centred * factor + own.shift));
      }
    });
  }
};

template <typename T>
void head_forward(const Head<T>& head, const T* x, T* out, T* scratch) {
  for_each_image(head.images, head.threads, [&](long image, long thread) {
    HeadImage<T>(head, image, x, scratch + thread * head.scratch_size).forward(out);
  });
}

// `gradients` becomes the sum over the images of the rows that the norm's gradients are written to.
template <typename T>
void head_backward(const Head<T>& head, const T* x, const T* grad, T* grad_x, const T* rows, T* gradients,
                   T* scratch) {
  Turns turns(head.images);
  for_each_image(head.images, head.threads, [&](long image, long thread) {
    HeadImage<T>(head, image, x, scratch + thread * head.scratch_size).backward(grad, grad_x, turns);
  });
  sum_images(rows, head.images, head.norm.grad_step, gradients);
}

}  // namespace
}  // namespace tinytl

#define TINYTL_HEAD(T, suffix)                                                                                 \
  void head_forward_##suffix(const tinytl::Head<T>* head, const T* x, T* out, T* scratch) {                    \
    tinytl::head_forward(*head, x, out, scratch);                                                              \
  }                                                                                                            \
  void head_backward_##suffix(const tinytl::Head<T>* head, const T* x, const T* grad, T* grad_x, const T* rows, \
                              T* gradients, T* scratch) {                                                      \
    tinytl::head_backward(*head, x, grad, grad_x, rows, gradients, scratch);                                   \
  }

extern "C" {
#if defined(TINYTL_FLOAT32)
TINYTL_HEAD(float, float32)
#else
TINYTL_HEAD(double, float64)
#endif
}
