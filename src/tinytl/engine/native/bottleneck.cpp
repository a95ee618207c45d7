// The inverted bottleneck, forwards or backwards in one call: expansion (a 1x1 convolution, the network's
// stem, or none), depthwise convolution and projection, each with a norm after it, and the shortcut.
//
// An image is computed at a time, so that its maps stay in the cache. Its expanded channels are computed in
// steps and slices. A step is expanded and filtered, channels in the lanes of vectors: norms then need no sums
// across lanes, and products and filters end in them while their results are in registers. A slice is what
// the projection sums, or, backwards, the product into the gradient with respect to the input. The backward
// pass computes the maps of each step again, with the statistics that the forward pass has kept. Where the
// convolutions train, the gradients with respect to their weights are made of the maps of each step, too.
//
// With squeeze and excitation, the gates of all channels are known only after a first pass over the filtered
// maps, and, backwards, the gradients with respect to the gates after a first pass over their gradients. Between
// two passes, an image's maps are held, or computed again.
#include "depthwise.h"
#include "plane_norms.h"
#include "pointwise.h"
#include "squeeze_excitation.h"
#include "stem.h"
#include "threads.h"
#include "weight_sums.h"

namespace tinytl {
namespace {

// Elements of each buffer of a thread, and in all; computed in Python, see bottleneck.py.
struct BufferSizes {
  long expanded;         // maps of a step before the filter
  long filtered;         // and after it
  long grad_filtered;    // 0: the gradient takes the place of the filtered maps
  long maps;             // of a slice, or all, if held: after the filter; backwards, gradients before it
  long projection;       // (out, out_area): recomputed in the backward pass, or 0
  long grad_projection;  // (out, out_area)
  long weights, taps, factors;
  long ring;             // rows around the filter
  long rows;             // input rows of the stem
  long sums;             // of a step, and coefficients made of them
  long gates;            // of squeeze and excitation
  // Where convolutions train, or 0: sums of their gradients, of a step and (project) of an image;
  long sums_expand, sums_depthwise, sums_project;
  long natural;          // rows of a weight;
  long active;           // activated pixels, or a row of them
  long all;
};

// Maps of all channels that are held between the two passes of squeeze and excitation.
enum Held : long { NOTHING = 0, FILTERED = 1, EXPANDED = 2 };  // after the filter; those before it, too

// The fields are set in Python.
template <typename T>
struct Block {
  Weight<T> expand, depthwise, project;
  SqueezeExcitation<T> squeeze;  // after the second norm's activation, if any
  Norm<T> norms[3];  // after the expansion (if there is one), the depthwise convolution, the projection
  Packing packing;   // of the expanded channels
  Window stem;       // the expansion's; kernel 0 for none
  Window window;     // the depthwise convolution's
  long images, in, out, skip, threads;
  long step, slice;  // lanes
  long held;         // Held
  BufferSizes sizes;
  // The weights' own order and gradients, which are null where none is needed: of expansion, depthwise
  // convolution and projection, and the two of squeeze and excitation.
  Convolution<T> trained[5];

  bool trains(int conv) const { return trained[conv].grad_weight != nullptr; }
  bool has_expansion() const { return stem.kernel > 0; }
  // Whether the expansion is more than a product of the channels of each pixel.
  bool has_stem() const { return stem.kernel > 1 || stem.stride > 1 || stem.top > 0; }
  long expand_size() const { return in * stem.kernel * stem.kernel; }
  long out_lanes() const { return ceil_div(out, PACK) * PACK; }
  long x_size() const { return in * (has_stem() ? stem.area() : window.area()); }
  long out_size() const { return out * window.out_area(); }
};

template <typename T>
struct Buffers {
  T *expanded, *filtered, *grad_filtered, *maps, *projection, *grad_projection, *weights, *taps, *factors, *ring,
      *rows, *sums, *gates, *sums_expand, *sums_depthwise, *sums_project, *natural, *active;

  Buffers(const BufferSizes& sizes, T* scratch)
      : expanded(take(scratch, sizes.expanded)), filtered(take(scratch, sizes.filtered)),
        grad_filtered(sizes.grad_filtered ? take(scratch, sizes.grad_filtered) : filtered),
        maps(take(scratch, sizes.maps)), projection(take(scratch, sizes.projection)),
        grad_projection(take(scratch, sizes.grad_projection)), weights(take(scratch, sizes.weights)),
        taps(take(scratch, sizes.taps)), factors(take(scratch, sizes.factors)), ring(take(scratch, sizes.ring)),
        rows(take(scratch, sizes.rows)), sums(take(scratch, sizes.sums)), gates(take(scratch, sizes.gates)),
        sums_expand(take(scratch, sizes.sums_expand)), sums_depthwise(take(scratch, sizes.sums_depthwise)),
        sums_project(take(scratch, sizes.sums_project)), natural(take(scratch, sizes.natural)),
        active(take(scratch, sizes.active)) {}
};

// One image on its way through the block.
template <typename T>
class Image {
 public:
  Image(const Block<T>& block, long image, const T* x, T* scratch)
      : block(block), buffers(block.sizes, scratch), window(block.window), image(image),
        x(x + image * block.x_size()), gates(block.squeeze, block.packing, image, buffers.gates) {}

  // Projects into `projection`, (out, out_area), and writes the statistics of the first two norms. Activated maps
  // of all channels are used where they are held.
  void project(T* projection, const T* held = nullptr) {
    for_slices([&](long first, long count) {
      const T* maps = held ? held + first * window.out_area() : forward_slice(first, count, buffers.maps);
      for_pairs<T>(ceil_div(block.out, L), [&]<int N>(long vector) {
        unpack_projection<N>(first, count, vector * L);
        plane_product<N, T>(maps, count, window.out_area(), buffers.weights,
                            projection + vector * L * window.out_area(), block.out - vector * L, first > 0);
      });
    });
  }

  void forward(T* out, T* normed) {
    out += image * block.out_size();
    if (gates.exist()) squeeze();
    project(out, gates.exist() && block.held ? buffers.maps : nullptr);
    norm_planes(block.norms[2], image, window.out_area(), out, block.skip ? x : nullptr,
                normed ? normed + image * block.out_size() : nullptr, out);
  }

  void backward(const T* grad, const T* normed, T* grad_x, Turns& turns) {
    grad += image * block.out_size();
    if (normed) normed += image * block.out_size();
    if (gates.exist()) gates.compute();
    if (!normed && block.sizes.projection) normed = recomputed_projection();
    norm_planes_backward(block.norms[2], image, window.out_area(), grad, normed, buffers.grad_projection);
    if (grad_x) {
      grad_x += image * block.x_size();
      if (block.skip)
        std::memcpy(grad_x, grad, sizeof(T) * block.x_size());
      else
        std::memset(grad_x, 0, sizeof(T) * block.x_size());
    }
    if (gates.exist()) backward_gates(grad_x || block.trains(0), turns);
    for_slices([&](long first, long count) { backward_slice(first, count, grad_x, turns); });
    if (block.trains(2))
      turns.take(image, [&] {
        add_sums_of_columns(block.trained[2], block.packing, buffers.sums_project, buffers.natural);
      });
  }

 private:
  static constexpr long L = LANES<T>;
  const Block<T>& block;
  const Buffers<T> buffers;
  const Window& window;
  const long image;
  const T* x;
  Gates<T> gates;

  // Calls f(first lane, lanes) for the slices.
  template <class F>
  void for_slices(F&& f) const {
    for (long first = 0; first < block.packing.lanes(); first += block.slice)
      f(first, smaller_of(block.slice, block.packing.lanes() - first));
  }

  ChannelNorm<T> channel_norm(int norm, long lane) const {
    return {block.norms[norm], image, block.packing.channel(lane), block.packing.used(lane, L)};
  }

  const T* recomputed_projection() {
    project(buffers.projection);
    normalize_planes(block.norms[2], image, window.out_area(), buffers.projection, buffers.projection);
    return buffers.projection;
  }

  // Maps before the filter, (count / L, area, lanes), of lanes from `lane` on.
  void expand(long lane, long count, T* y, Sums<T>* sums) {
    if (!block.has_expansion()) {
      for (long at = 0; at < count; at += L)
        pack_planes(x + block.packing.channel(lane + at) * window.area(), window.area(),
                    block.packing.used(lane + at, L), y + at * window.area());
      return;
    }
    for_pairs<T>(count / L, [&]<int N>(long vector) {
      unpack<N, T>(block.expand, lane + vector * L, block.expand_size(), buffers.weights);
      T* target = y + vector * L * window.area();
      Sums<T>* own = sums ? sums + vector : nullptr;
      if (block.has_stem())
        stem<N, T>(block.stem, x, block.in, buffers.weights, buffers.rows, target, own);
      else
        pack_product<N, T>(x, block.in, window.area(), buffers.weights, target, own);
    });
  }

  // Filters one vector of expanded maps.
  void filter_vector(long lane, const T* y, T* z, Sums<T>* sums) {
    unpack<1, T>(block.depthwise, lane, window.kernel * window.kernel, buffers.taps);
    if (!block.has_expansion()) {
      const Activation none = {CLAMP, -HUGE_VAL, HUGE_VAL};
      return filter<T>(window, none, y, broadcast<T>(1), Vector<T>{}, buffers.taps, buffers.ring, z, sums);
    }
    const ChannelNorm<T> own = channel_norm(0, lane);
    filter<T>(window, block.norms[0].act, y, own.factor(), own.offset(), buffers.taps, buffers.ring, z, sums);
  }

  // Calls f(unit's first lane, channel, channels) for the units of a step.
  template <class F>
  void for_units(long lane, long count, F&& f) const {
    for (long unit = lane; unit < lane + count; unit += block.packing.unit_lanes)
      f(unit, block.packing.channel(unit), block.packing.used(unit, block.packing.unit_lanes));
  }

  void write_step_statistics(int norm, long lane, long count, long area, const Sums<T>* sums) const {
    if (block.norms[norm].stored()) return;
    for_units(lane, count, [&](long unit, long channel, long channels) {
      write_statistics<T>(sums + (unit - lane) / L, block.norms[norm], image, channel, channels, area);
    });
  }

  // Makes the gates of the means over pixels of all activated maps, which are held if they are to be.
  void squeeze() {
    for_slices([&](long first, long count) {
      const T* maps = forward_slice(first, count, buffers.maps + (block.held ? first * window.out_area() : 0));
      for (long at = 0; at < count; at += L)
        gates.set_mean(first + at, mean_of_pixels<T>(maps + at * window.out_area(), window.out_area()));
    });
    gates.compute();
  }

  const T* forward_slice(long first, long count, T* maps) {
    for (long lane = first; lane < first + count; lane += block.step)
      forward_step(lane, smaller_of(block.step, first + count - lane), maps + (lane - first) * window.out_area());
    return maps;
  }

  // Maps after the filter, its norm and activation, (count / L, out_area, lanes).
  void forward_step(long lane, long count, T* z) {
    const long out_area = window.out_area();
    Sums<T>* sums = reinterpret_cast<Sums<T>*>(buffers.sums);
    const bool has_statistics = block.has_expansion() && !block.norms[0].stored();
    expand(lane, count, buffers.expanded, has_statistics ? sums : nullptr);
    if (has_statistics) write_step_statistics(0, lane, count, window.area(), sums);
    for (long at = 0; at < count; at += L)
      filter_vector(lane + at, buffers.expanded + at * window.area(), z + at * out_area,
                    block.norms[1].stored() ? nullptr : sums + at / L);
    write_step_statistics(1, lane, count, out_area, sums);
    for (long at = 0; at < count; at += L) {
      const ChannelNorm<T> own = channel_norm(1, lane + at);
      activate<T>(block.norms[1].act, z + at * out_area, out_area, own.factor(), own.offset(), z + at * out_area);
    }
  }

  // The projection's weights from `count` lanes to N vectors of outputs, (count, N, lanes), times the gates.
  // Padding gets zeros: an activation may make something else of it.
  template <int N>
  void unpack_projection(long first, long count, long output) {
    Vector<T> scale[N], shift[N];
    for (int n = 0; n < N; n++)
      scale[n] = load(block.project.scale + output + n * L), shift[n] = shift_of(block.project, output + n * L);
    T* weights = buffers.weights;
    for (long lane = first; lane < first + count; lane += L) {
      const long used = block.packing.used(lane, L);
      for (long i = 0; i < L; i++) {
        const T gate = gates.exist() ? gates.value(lane + i) : 1;
        for (int n = 0; n < N; n++, weights += L)
          store(weights,
                i < used ? (projection_weights(lane + i, output + n * L) * scale[n] + shift[n]) * gate : Vector<T>{});
      }
    }
  }

  Vector<T> projection_weights(long lane, long output) const {
    return block.project.load_at(lane * block.out_lanes() + output);
  }

  // The other way: from the outputs to N vectors of lanes, (out_lanes, N, lanes).
  template <int N>
  void unpack_projection_transposed(long lane) {
    for (long output = 0; output < block.out_lanes(); output += L) {
      const Vector<T> scale = load(block.project.scale + output), shift = shift_of(block.project, output);
      for (int n = 0; n < N; n++) {
        Vector<T> rows[L];
        TINYTL_UNROLL for (int i = 0; i < L; i++)
          rows[i] = projection_weights(lane + n * L + i, output) * scale + shift;
        transpose<T>(rows);
        TINYTL_UNROLL for (int i = 0; i < L; i++)
          store(buffers.weights + ((output + i) * N + n) * L, rows[i]);
      }
    }
  }

  // The gradients with respect to the gates of N vectors; z is the filter's output. g becomes the gradient with
  // respect to the gated maps where it is held.
  template <int N>
  void unproject_gates(long lane, const T* z, T* g) {
    const long out_area = window.out_area();
    unpack_projection_transposed<N>(lane);
    Vector<T> factor[N], offset[N];
    Wide<T> totals[N] = {};
    for (int n = 0; n < N; n++) {
      const ChannelNorm<T> own = channel_norm(1, lane + n * L);
      factor[n] = own.factor(), offset[n] = own.offset();
    }
    for_tiles<T>(out_area, [&]<int P>(long start) TINYTL_INLINE_LAMBDA {
      Vector<T> tile[P][N];
      clear<T>(tile);
      add_products<1, T>(buffers.grad_projection + start, out_area, block.out, buffers.weights, tile);
      TINYTL_UNROLL for (int n = 0; n < N; n++) {
        const long at = (n * out_area + start) * L;
        Vector<T> value[P], sum = {};
        if (block.held) TINYTL_UNROLL for (int p = 0; p < P; p++) store(g + at + p * L, tile[p][n]);
        TINYTL_UNROLL for (int p = 0; p < P; p++) value[p] = load(z + at + p * L) * factor[n] + offset[n];
        activate_tile<T>(block.norms[1].act, value, P);
        TINYTL_UNROLL for (int p = 0; p < P; p++) sum += tile[p][n] * value[p];
        totals[n] += widen<T>(sum);
      }
    });
    for (int n = 0; n < N; n++) gates.set_grad(lane + n * L, narrow<T>(totals[n]));
  }

  // g = the gradient with respect to the second norm's output before the activation, for N vectors; z is the
  // filter's output, and g may be z. With squeeze and excitation g may hold that with respect to the gated maps.
  template <int N>
  void unproject(long lane, const T* z, T* g, GradSums<T>* sums) {
    const long out_area = window.out_area();
    const bool is_held = gates.exist() && block.held;
    if (!is_held) unpack_projection_transposed<N>(lane);
    ChannelNorm<T> own[N];
    GradSums<T> totals[N];
    for (int n = 0; n < N; n++) own[n] = channel_norm(1, lane + n * L);
    for_tiles<T>(out_area, [&]<int P>(long start) TINYTL_INLINE_LAMBDA {
      Vector<T> tile[P][N];
      clear<T>(tile);
      if (!is_held) add_products<1, T>(buffers.grad_projection + start, out_area, block.out, buffers.weights, tile);
      TINYTL_UNROLL for (int n = 0; n < N; n++) {
        const long at = (n * out_area + start) * L;
        Vector<T> grad[P], centred[P];
        TINYTL_UNROLL for (int p = 0; p < P; p++)
          grad[p] = is_held ? load(g + at + p * L) : tile[p][n], centred[p] = load(z + at + p * L) - own[n].mean;
        if (gates.exist()) {
          const Vector<T> gate = gates.vector(lane + n * L), along = gates.grad_pixel(lane + n * L);
          TINYTL_UNROLL for (int p = 0; p < P; p++) grad[p] = grad[p] * gate + along;
        }
        gate_tile<T, P>(block.norms[1], own[n], grad, centred, totals[n]);
        TINYTL_UNROLL for (int p = 0; p < P; p++) store(g + at + p * L, grad[p]);
      }
    });
    for (int n = 0; n < N; n++) sums[n] = totals[n];
  }

  void backward_slice(long first, long count, T* grad_x, Turns& turns) {
    // Without a product into the gradient of x, the maps of a step alone are needed.
    const bool has_product = grad_x && block.has_expansion() && !block.has_stem();
    T* const maps = buffers.maps + (holds(EXPANDED) ? first : 0) * window.area();
    for (long lane = first; lane < first + count; lane += block.step) {
      T* grad_expanded = maps + (has_product || holds(EXPANDED) ? lane - first : 0) * window.area();
      const long step = smaller_of(block.step, first + count - lane);
      backward_step(lane, step, grad_expanded, grad_x || block.trains(0));
      add_weight_gradients(lane, step, turns);
      if (grad_x && !has_product) backward_planes(lane, step, grad_expanded, grad_x);
    }
    if (!has_product) return;
    for_pairs<T>(ceil_div(block.in, L), [&]<int N>(long vector) {
      unpack_transposed<N, T>(block.expand, first, count, block.expand_size(), vector * L, buffers.factors + first,
                              buffers.weights);
      plane_product<N, T>(maps, count, window.area(), buffers.weights, grad_x + vector * L * window.area(),
                          block.in - vector * L, true);
    });
  }

  bool holds(Held maps) const { return gates.exist() && block.held >= maps; }

  // Whether the gradient with respect to the expanded maps takes their place.
  bool is_in_place(bool needs_grad) const {
    return !block.has_expansion() || block.norms[0].stored() || !needs_grad;
  }

  // Computes the expanded and filtered maps of a step again.
  void filter_again(long lane, long count, T* y, T* z) {
    expand(lane, count, y, nullptr);
    for (long at = 0; at < count; at += L)
      filter_vector(lane + at, y + at * window.area(), z + at * window.out_area(), nullptr);
  }

  // The first pass of squeeze and excitation: from the gradient with respect to the projection to those with
  // respect to the gates, the biases, the weights and the means over pixels.
  void backward_gates(bool needs_grad, Turns& turns) {
    const long area = window.area(), out_area = window.out_area();
    T* const expanded = is_in_place(needs_grad) ? buffers.maps : buffers.expanded;
    for_slices([&](long first, long count) {
      for (long lane = first; lane < first + count; lane += block.step) {
        const long step = smaller_of(block.step, first + count - lane), place = holds(FILTERED) ? lane : 0;
        T *z = buffers.filtered + place * out_area, *g = buffers.grad_filtered + place * out_area;
        filter_again(lane, step, expanded + (holds(EXPANDED) ? lane : 0) * area, z);
        for_pairs<T>(step / L, [&]<int N>(long vector) {
          const long at = vector * L * out_area;
          unproject_gates<N>(lane + vector * L, z + at, g + at);
        });
      }
    });
    gates.backward(image, block.norms[2].grad_step, out_area, [&] {
      if (block.trains(3) || block.trains(4))
        turns.take(image, [&] { gates.add_weight_gradients(block.trained[3], block.trained[4], buffers.natural); });
    });
  }

  // grad = the gradient with respect to the expanded maps of a step, up to the factors that are left in
  // buffers.factors where statistics are stored.
  void backward_step(long lane, long count, T* grad, bool needs_grad) {
    const long area = window.area(), out_area = window.out_area();
    const long place = holds(FILTERED) ? lane : 0;
    T* y = is_in_place(needs_grad) ? grad : buffers.expanded + (holds(EXPANDED) ? lane : 0) * area;
    T *z = buffers.filtered + place * out_area, *g = buffers.grad_filtered + place * out_area;
    GradSums<T>* sums = reinterpret_cast<GradSums<T>*>(buffers.sums);
    Coefficients<T>* coefficients = reinterpret_cast<Coefficients<T>*>(sums + count / L);
    if (!holds(FILTERED))
      filter_again(lane, count, y, z);
    else if (!holds(EXPANDED))
      expand(lane, count, y, nullptr);
    if (block.trains(2)) sum_projection(lane, count, z);
    for_pairs<T>(count / L, [&]<int N>(long vector) {
      const long at = vector * L * out_area;
      unproject<N>(lane + vector * L, z + at, g + at, sums + vector);
    });
    write_step_gradients(1, lane, count, out_area, sums, coefficients);
    for (long at = 0; at < count; at += L) {
      const FilterGradient<T> gradient = {g + at * out_area, z + at * out_area, channel_norm(1, lane + at).mean,
                                          coefficients[at / L], block.norms[1].stored()};
      if (block.trains(1)) sum_filter(lane, at, gradient, y + at * area);
      unpack<1, T>(block.depthwise, lane + at, window.kernel * window.kernel, buffers.taps);
      if (block.has_expansion())
        filter_backward<T>(window, gradient, buffers.taps, buffers.ring, &block.norms[0],
                           channel_norm(0, lane + at), y + at * area, grad + at * area, sums[at / L]);
      else
        filter_backward<T>(window, gradient, buffers.taps, buffers.ring, nullptr, {}, y + at * area,
                           grad + at * area, sums[at / L]);
    }
    if (!block.has_expansion()) return;
    write_step_gradients(0, lane, count, area, sums, coefficients);
    if (needs_grad) backward_first_norm(lane, count, coefficients, y, grad);
    if (block.trains(0)) sum_expansion(lane, count, grad);
  }

  // The sums of the projection's gradient, of the filter's output z.
  void sum_projection(long lane, long count, const T* z) {
    const long out_area = window.out_area();
    std::memset(buffers.sums_project + lane * block.out, 0, sizeof(T) * count * block.out);
    for_pairs<T>(count / L, [&]<int N>(long vector) {
      const long at = vector * L;
      for (long start = 0; start < out_area; start += PIXEL_CHUNK) {
        const long pixels = smaller_of(PIXEL_CHUNK, out_area - start);
        for (int n = 0; n < N; n++) {
          const ChannelNorm<T> own = channel_norm(1, lane + at + n * L);
          activate<T>(block.norms[1].act, z + (at + n * L) * out_area + start * L, pixels, own.factor(),
                      own.offset(), buffers.active + n * PIXEL_CHUNK * L);
        }
        add_outer<1, N, T>(buffers.active, PIXEL_CHUNK * L, buffers.grad_projection + start, out_area, block.out,
                           pixels, buffers.sums_project + (lane + at) * block.out, block.out * L);
      }
    });
    if (!gates.exist()) return;
    for (long at = lane; at < lane + count; at += L) {
      const Vector<T> gate = gates.vector(at);
      for (T* sum = buffers.sums_project + at * block.out; sum < buffers.sums_project + (at + L) * block.out; sum += L)
        store(sum, load(sum) * gate);
    }
  }

  // Those of the depthwise convolution's gradient, of the vector of channels `at` lanes after `lane`.
  void sum_filter(long lane, long at, const FilterGradient<T>& gradient, const T* y) {
    T* sums = buffers.sums_depthwise + at * window.kernel * window.kernel;
    std::memset(sums, 0, sizeof(T) * window.kernel * window.kernel * L);
    Activation act = {CLAMP, -HUGE_VAL, HUGE_VAL};
    Vector<T> factor = broadcast<T>(1), offset = {};
    if (block.has_expansion()) {
      const ChannelNorm<T> own = channel_norm(0, lane + at);
      act = block.norms[0].act, factor = own.factor(), offset = own.offset();
    }
    add_filter_sums<T>(window, gradient, act, y, factor, offset, buffers.ring, buffers.active, sums);
  }

  // Those of the expansion's gradient; `grad` is the gradient with respect to its output, up to factors.
  void sum_expansion(long lane, long count, const T* grad) {
    const long size = block.expand_size();
    std::memset(buffers.sums_expand, 0, sizeof(T) * count * size);
    for_pairs<T>(count / L, [&]<int N>(long vector) {
      const T* own = grad + vector * L * window.area();
      T* sums = buffers.sums_expand + vector * L * size;
      if (block.has_stem())
        add_stem_sums<N, T>(block.stem, own, x, block.in, buffers.rows, sums);
      else
        add_pointwise_sums<N, T>(own, x, block.in, window.area(), sums);
    });
    for (long at = 0; at < count; at += L) {
      const Vector<T> factor = load(buffers.factors + lane + at);
      for (long k = at * size; k < (at + L) * size; k += L)
        store(buffers.sums_expand + k, load(buffers.sums_expand + k) * factor);
    }
  }

  // Adds the sums of a step to the gradients with respect to the weights whose rows they complete.
  void add_weight_gradients(long lane, long count, Turns& turns) {
    if (!block.trains(0) && !block.trains(1)) return;
    turns.take(image, [&] {
      if (block.trains(0))
        add_sums_of_rows(block.trained[0], block.packing, lane, count, buffers.sums_expand, buffers.natural);
      if (block.trains(1))
        add_sums_of_rows(block.trained[1], block.packing, lane, count, buffers.sums_depthwise, buffers.natural);
    });
  }

  void write_step_gradients(int norm, long lane, long count, long area, const GradSums<T>* sums,
                            Coefficients<T>* coefficients) const {
    for_units(lane, count, [&](long unit, long channel, long channels) {
      const long vector = (unit - lane) / L;
      for (long i = ceil_div(channels, L); i < block.packing.unit_lanes / L; i++) coefficients[vector + i] = Coefficients<T>{};
      write_gradients<T>(sums + vector, block.norms[norm], image, channel, channels, area, coefficients + vector);
    });
  }

  void backward_first_norm(long lane, long count, const Coefficients<T>* coefficients, const T* y, T* grad) {
    const bool stored = block.norms[0].stored();
    for (long at = 0; at < count; at += L) {
      const Coefficients<T>& c = coefficients[at / L];
      store(buffers.factors + lane + at, stored ? c.factor : broadcast<T>(1));
      if (stored) continue;
      const Vector<T> mean = channel_norm(0, lane + at).mean;
      for (long p = at * window.area(); p < (at + L) * window.area(); p += L)
        store(grad + p, load(grad + p) * c.factor + (load(y + p) - mean) * c.along + c.constant);
    }
  }

  // Adds the gradient with respect to x of a step, where a stem, or nothing, stands before the filter.
  void backward_planes(long lane, long count, const T* grad, T* grad_x) {
    for (long at = 0; at < count; at += L) {
      const T* maps = grad + at * window.area();
      const long channel = block.packing.channel(lane + at), used = block.packing.used(lane + at, L);
      if (!block.has_expansion()) {
        unpack_planes<T>(maps, window.area(), used, grad_x + channel * window.area(), true);
        continue;
      }
      unpack<1, T>(block.expand, lane + at, block.expand_size(), buffers.weights);
      for (long k = 0; k < block.expand_size(); k++)
        store(buffers.weights + k * L, load(buffers.weights + k * L) * load(buffers.factors + lane + at));
      stem_backward<T>(block.stem, maps, block.in, buffers.weights, grad_x);
    }
  }
};

template <typename T>
void bottleneck_forward(const Block<T>& block, const T* x, T* out, T* normed, T* scratch) {
  for_each_image(block.images, block.threads, [&](long image, long thread) {
    Image<T>(block, image, x, scratch + thread * block.sizes.all).forward(out, normed);
  });
}

// `gradients` becomes the sum over the images of the rows that the norms' gradients are written to.
template <typename T>
void bottleneck_backward(const Block<T>& block, const T* x, const T* grad, const T* normed, T* grad_x,
                         const T* rows, T* gradients, T* scratch) {
  Turns turns(block.images);
  for_each_image(block.images, block.threads, [&](long image, long thread) {
    Image<T>(block, image, x, scratch + thread * block.sizes.all).backward(grad, normed, grad_x, turns);
  });
  sum_images(rows, block.images, block.norms[2].grad_step, gradients);
}

}  // namespace
}  // namespace tinytl

#define TINYTL_BOTTLENECK(T, suffix)                                                                             \
  void bottleneck_forward_##suffix(const tinytl::Block<T>* block, const T* x, T* out, T* normed, T* scratch) {   \
    tinytl::bottleneck_forward(*block, x, out, normed, scratch);                                                 \
  }                                                                                                              \
  void bottleneck_backward_##suffix(const tinytl::Block<T>* block, const T* x, const T* grad, const T* normed,   \
                                    T* grad_x, const T* rows, T* gradients, T* scratch) {                        \
    tinytl::bottleneck_backward(*block, x, grad, normed, grad_x, rows, gradients, scratch);                      \
  }

extern "C" {
#if defined(TINYTL_FLOAT32)
TINYTL_BOTTLENECK(float, float32)
#else
TINYTL_BOTTLENECK(double, float64)
#endif
}
