// The CUDA backend's products and the end of its head at DeepSeek-R1's shapes, beside the rate at
// which a plain kernel reads the card's memory in the same run.
//
// Each benchmark records some calls as a CUDA graph, one after another over weights that lie behind
// each other in memory, so that none is in a cache when its turn comes, and times its replays:
// launches cost what they cost in a recorded step. `us` is one call's time, `gb_per_s` counts the
// bytes of weights that a call must read once, `share` is gb_per_s over that of ReadMemory,
// `share_of_like` the time of plain reads of as many bytes in as many launches over this one's.
// Products take activations that are already quantized; ExpertLayer includes all its launches.
// Sample is what the host waits for a step's tokens when the logits are there: with all its copies,
// and by the clock.
//
//   cuda_bench --benchmark_filter='Product/Q4_K.*/rows:1$'

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/median.h"
#include "bench/cuda_fill.h"
#include "bench/must_be.h"
#include "benchmark/benchmark.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/expert_ffn.h"
#include "kernels/cuda/logit_summary.h"
#include "kernels/cuda/matrix_product.h"
#include "kernels/cuda/memory_rates.h"
#include "kernels/cuda/product_launch.h"
#include "kernels/tiled/tile_layout.h"
#include "model/sampler.h"

namespace caravan {
namespace {

void MustDo(cudaError_t error, const char* call) { MustBe(CudaStatus(error, call)); }

/// The card and its weights: random bits, shared by all benchmarks.
struct Bench {
  std::unique_ptr<CudaStream> stream;
  DeviceBuffer weights;
  DeviceBuffer sink;
  DeviceBuffer scales;  // FP8's
  double read_gb_per_s = 0;
  int64_t at = 0;

  /// The next `bytes` bytes of the weights.
  const std::byte* Next(int64_t bytes) {
    if (at + bytes > weights.bytes()) at = 0;
    const std::byte* const next = weights.data() + at;
    at += RoundUp<int64_t>(bytes, 256);
    return next;
  }
  Matrix NextMatrix(DType dtype, int64_t rows, int64_t cols) {
    return {.data = Next(TiledBytes(dtype, rows, cols)),
            .dtype = dtype,
            .rows = rows,
            .cols = cols,
            .scale_inv = dtype == DType::kF8E4M3 ? scales.as<float>() : nullptr,
            .layout = MatrixLayout::kTiled16};
  }
};

DeviceBuffer Buffer(const CudaStream& stream, int64_t bytes) {
  return MustBe(DeviceBuffer::Create(stream.device(), bytes));
}

template <typename T>
DeviceBuffer Copied(const CudaStream& stream, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  DeviceBuffer buffer = Buffer(stream, bytes);
  MustBe(CopyToDevice(stream, values.data(), bytes, buffer.data()));
  return buffer;
}

std::vector<float> Activations(int64_t count) {
  std::mt19937_64 rng(2);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(rng);
  return values;
}

/// What `record` queues, to be run again.
class Recorded {
 public:
  Recorded(const CudaStream& stream, const std::function<void()>& record) : stream_(stream) {
    record();  // Modules loaded, attributes set.
    MustBe(stream.Synchronize());
    cudaGraph_t graph = nullptr;
    MustDo(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
    record();
    MustDo(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
    MustDo(cudaGraphInstantiate(&replayed_, graph, 0), "cudaGraphInstantiate");
    MustDo(cudaGraphDestroy(graph), "cudaGraphDestroy");
    MustDo(cudaEventCreate(&begin_), "cudaEventCreate");
    MustDo(cudaEventCreate(&end_), "cudaEventCreate");
    Seconds();
  }
  ~Recorded() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaGraphExecDestroy(replayed_);
  }
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;

  double Seconds() {
    MustDo(cudaEventRecord(begin_, stream_.get()), "cudaEventRecord");
    MustDo(cudaGraphLaunch(replayed_, stream_.get()), "cudaGraphLaunch");
    MustDo(cudaEventRecord(end_, stream_.get()), "cudaEventRecord");
    MustBe(stream_.Synchronize());
    float ms = 0;
    MustDo(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return ms * 1e-3;
  }

 private:
  const CudaStream& stream_;
  cudaGraphExec_t replayed_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

Bench MakeBench() {
  Bench bench;
  bench.stream = MustBe(CudaStream::Create(MustBe(CudaDevice::Open(0))));
  const CudaStream& stream = *bench.stream;
  const CudaMemoryInfo memory = MustBe(stream.device().Memory());
  // An R1 layer's experts at 4.5 bits, or what there is.
  const int64_t bytes = std::min(int64_t{6500} << 20, memory.free_bytes / 10 * 7);
  bench.weights = Buffer(stream, RoundUp<int64_t>(bytes, 256));
  bench.sink = Buffer(stream, 256);
  bench.scales = Copied(stream, std::vector<float>(1 << 20, 0.01f));
  FillRandomly(stream, bench.weights.data(), bench.weights.bytes());
  Recorded read(stream, [&] {
    MustBe(
        ReadDeviceMemory(stream, bench.weights.data(), bench.weights.bytes(), bench.sink.data()));
  });
  std::vector<double> seconds;
  for (int i = 0; i < 21; ++i) seconds.push_back(read.Seconds());
  bench.read_gb_per_s = 1e-9 * static_cast<double>(bench.weights.bytes()) / Median(seconds);
  return bench;
}

Bench& TheBench() {
  static auto* const bench = new Bench(MakeBench());
  return *bench;
}

/// Times `calls` calls of `call` and reports one; `bytes` of weights and `multiply_adds` each.
void Time(benchmark::State& state, int calls, int64_t bytes, double multiply_adds,
          const std::function<void(int)>& call) {
  Bench& bench = TheBench();
  Recorded recorded(*bench.stream, [&] {
    for (int i = 0; i < calls; ++i) call(i);
  });
  Recorded read(*bench.stream, [&] {
    for (int i = 0; i < calls; ++i) {
      MustBe(
          ReadDeviceMemory(*bench.stream, bench.Next(bytes), bytes / 16 * 16, bench.sink.data()));
    }
  });
  std::vector<double> seconds, reads;
  for (auto _ : state) {
    seconds.push_back(recorded.Seconds() / calls);
    reads.push_back(read.Seconds() / calls);
    state.SetIterationTime(seconds.back());
  }
  const double median = Median(seconds);
  const double gb_per_s = 1e-9 * static_cast<double>(bytes) / median;
  state.counters["us"] = 1e6 * median;
  state.counters["gb_per_s"] = gb_per_s;
  state.counters["share"] = gb_per_s / bench.read_gb_per_s;
  state.counters["share_of_like"] = Median(reads) / median;
  state.counters["tops"] = 2e-12 * multiply_adds / median;
}

void ReadMemory(benchmark::State& state) {
  for (auto _ : state) state.SetIterationTime(1e-3);
  state.counters["gb_per_s"] = TheBench().read_gb_per_s;
}
BENCHMARK(ReadMemory)->UseManualTime()->Iterations(1);

/// From page-locked memory.
void CopyFromHost(benchmark::State& state) {
  const int64_t bytes = state.range(0);
  Bench& bench = TheBench();
  void* host = nullptr;
  MustDo(cudaMallocHost(&host, static_cast<size_t>(bytes)), "cudaMallocHost");
  std::fill_n(static_cast<char*>(host), bytes, 'x');
  const DeviceBuffer device = Buffer(*bench.stream, bytes);
  {
    Recorded copy(*bench.stream, [&] {
      MustDo(cudaMemcpyAsync(device.data(), host, static_cast<size_t>(bytes),
                             cudaMemcpyHostToDevice, bench.stream->get()),
             "cudaMemcpyAsync");
    });
    std::vector<double> seconds;
    for (auto _ : state) {
      seconds.push_back(copy.Seconds());
      state.SetIterationTime(seconds.back());
    }
    state.counters["gb_per_s"] = 1e-9 * static_cast<double>(bytes) / Median(seconds);
  }
  MustDo(cudaFreeHost(host), "cudaFreeHost");
}
BENCHMARK(CopyFromHost)->Arg(24 << 20)->Arg(256 << 20)->UseManualTime()->MinTime(0.05);

void Product(benchmark::State& state, DType dtype, int64_t rows, int64_t cols, int64_t num_rows) {
  Bench& bench = TheBench();
  const CudaStream& stream = *bench.stream;
  const int64_t bytes = TiledBytes(dtype, rows, cols);
  if (bytes > bench.weights.bytes()) {
    state.SkipWithError("the card has too little memory");
    return;
  }
  // So many that three second-level caches would not hold their weights.
  const int64_t calls =
      std::clamp<int64_t>(CeilDiv<int64_t>(4 * stream.device().l2_bytes(), bytes), 2, 64);
  const DeviceBuffer x = Copied(stream, Activations(num_rows * cols));
  const DeviceBuffer blocks = Buffer(stream, ActivationBytes(num_rows, cols));
  const DeviceBuffer out = Buffer(stream, num_rows * rows * static_cast<int64_t>(sizeof(float)));
  const CudaRows input = {.floats = x.as<float>(),
                          .blocks = ActivationsAt(blocks.data(), num_rows, cols)};
  if (cols % 32 == 0) {
    MustBe(QuantizeRows(stream, x.as<float>(), num_rows, cols, input.blocks));
  }
  Time(state, static_cast<int>(calls), bytes,
       static_cast<double>(rows) * static_cast<double>(cols) * static_cast<double>(num_rows),
       [&](int) {
         MustBe(MultiplyRows(stream, bench.NextMatrix(dtype, rows, cols), input, num_rows,
                             out.as<float>()));
       });
}

/// 256 experts of R1's shape, 8 a row, chosen at random.
void ExpertLayer(benchmark::State& state, DType dtype, int64_t num_rows) {
  constexpr int64_t kHidden = 7168, kInter = 2048, kExperts = 256, kChosen = 8;
  Bench& bench = TheBench();
  const CudaStream& stream = *bench.stream;
  const int64_t bytes = TiledBytes(dtype, kInter, kHidden);
  if (3 * kExperts * bytes > bench.weights.bytes()) {
    state.SkipWithError("the card has too little memory");
    return;
  }
  bench.at = 0;
  std::vector<FfnWeights> experts;
  for (int64_t e = 0; e < kExperts; ++e) {
    experts.push_back({bench.NextMatrix(dtype, kInter, kHidden),
                       bench.NextMatrix(dtype, kInter, kHidden),
                       bench.NextMatrix(dtype, kHidden, kInter)});
  }
  const std::unique_ptr<CudaExpertFfn> ffn = MustBe(CudaExpertFfn::Create(
      stream,
      {.max_rows = num_rows, .max_chosen = kChosen, .hidden = kHidden, .expert_inter = kInter}));
  // Several layers' choices, so that a row's experts are not those of the call before.
  constexpr int kCalls = 8;
  std::mt19937_64 rng(3);
  std::vector<std::vector<int32_t>> ids(kCalls);
  std::vector<DeviceBuffer> device_ids;
  double touched = 0;
  for (std::vector<int32_t>& call : ids) {
    std::vector<int32_t> all(kExperts);
    std::iota(all.begin(), all.end(), 0);
    for (int64_t t = 0; t < num_rows; ++t) {
      std::shuffle(all.begin(), all.end(), rng);
      std::sort(all.begin(), all.begin() + kChosen);
      call.insert(call.end(), all.begin(), all.begin() + kChosen);
    }
    touched += static_cast<double>(std::set<int32_t>(call.begin(), call.end()).size()) / kCalls;
    device_ids.push_back(Copied(stream, call));
  }
  const DeviceBuffer x = Copied(stream, Activations(num_rows * kHidden));
  const DeviceBuffer weights = Copied(stream, std::vector<float>(num_rows * kChosen, 0.125f));
  const DeviceBuffer out = Copied(stream, std::vector<float>(num_rows * kHidden, 0));
  const auto touched_bytes = static_cast<int64_t>(3 * touched * static_cast<double>(bytes));
  Time(state, kCalls, touched_bytes,
       3.0 * kHidden * kInter * static_cast<double>(num_rows * kChosen), [&](int i) {
         ResidentExperts resident(experts, ids[i]);
         MustBe(ffn->RunExperts(resident, x.as<float>(), num_rows, device_ids[i].as<int32_t>(),
                                weights.as<float>(), kChosen, out.as<float>()));
       });
  state.counters["bound_us"] = 1e-3 * static_cast<double>(touched_bytes) / bench.read_gb_per_s;
}

constexpr int64_t kVocab = 129280;
constexpr int64_t kLogitRows = 256;

/// Rows of a few likely tokens above a long tail.
const DeviceBuffer& Logits() {
  static const DeviceBuffer& logits = *[] {
    constexpr int64_t kDistinct = 16;
    std::mt19937_64 rng(4);
    std::normal_distribution<float> normal(0, 1.5f);
    std::vector<float> some(kDistinct * kVocab);
    for (float& logit : some) logit = normal(rng);
    for (int64_t row = 0; row < kDistinct; ++row) {
      for (int i = 0; i < 20; ++i) {
        some[row * kVocab + static_cast<int64_t>(rng() % kVocab)] = 16 - static_cast<float>(i) / 2;
      }
    }
    std::vector<float> all;
    while (std::ssize(all) < kLogitRows * kVocab) all.insert(all.end(), some.begin(), some.end());
    return new DeviceBuffer(Copied(*TheBench().stream, all));
  }();
  return logits;
}

v1::SamplingParams SamplingOf(bool is_plain) {
  v1::SamplingParams params;
  params.set_temperature(0.6f);
  if (!is_plain) params.set_top_p(0.95f);
  return params;
}

void Summarize(benchmark::State& state, LogitQuestion question, int64_t num_rows) {
  const CudaStream& stream = *TheBench().stream;
  const CudaLogitSummarizer summarizer =
      MustBe(CudaLogitSummarizer::Create(stream, num_rows, kVocab));
  const DeviceBuffer questions = Copied(stream, std::vector<LogitQuestion>(num_rows, question));
  const DeviceBuffer summaries =
      Buffer(stream, num_rows * static_cast<int64_t>(sizeof(LogitSummary)));
  Time(state, 16, num_rows * kVocab * static_cast<int64_t>(sizeof(float)), 0, [&](int i) {
    const int64_t row = i * num_rows % kLogitRows;
    MustBe(summarizer.Run(stream, Logits().as<float>() + row * kVocab, num_rows, kVocab,
                          questions.as<LogitQuestion>(), summaries.as<LogitSummary>()));
  });
}

/// Tokens of so many rows, from their summaries or from all that was copied.
void Sample(benchmark::State& state, bool from_summaries, bool is_plain, int64_t num_rows) {
  const CudaStream& stream = *TheBench().stream;
  const v1::SamplingParams params = SamplingOf(is_plain);
  const CudaLogitSummarizer summarizer =
      MustBe(CudaLogitSummarizer::Create(stream, num_rows, kVocab));
  const auto question_bytes = num_rows * static_cast<int64_t>(sizeof(LogitQuestion));
  const auto summary_bytes = num_rows * static_cast<int64_t>(sizeof(LogitSummary));
  const auto logit_bytes = num_rows * kVocab * static_cast<int64_t>(sizeof(float));
  const DeviceBuffer questions = Buffer(stream, question_bytes);
  const DeviceBuffer summaries = Buffer(stream, summary_bytes);
  std::vector<LogitQuestion> asked(num_rows);
  std::vector<LogitSummary> told(num_rows);
  std::vector<float> copied(num_rows * kVocab);
  std::vector<double> seconds;
  int64_t position = 0;
  int open = 0;
  for (auto _ : state) {
    ++position;
    const auto begin = std::chrono::steady_clock::now();
    if (from_summaries) {
      for (LogitQuestion& question : asked) question = QuestionFor(params, position);
      MustBe(CopyToDevice(stream, asked.data(), question_bytes, questions.data()));
      MustBe(summarizer.Run(stream, Logits().as<float>(), num_rows, kVocab,
                            questions.as<LogitQuestion>(), summaries.as<LogitSummary>()));
      MustBe(CopyToHost(stream, summaries.data(), summary_bytes, told.data()));
      for (const LogitSummary& summary : told) {
        if (!SampleToken(summary, params, {}, position).has_value()) ++open;
      }
    } else {
      MustBe(CopyToHost(stream, Logits().data(), logit_bytes, copied.data()));
      for (int64_t row = 0; row < num_rows; ++row) {
        benchmark::DoNotOptimize(SampleToken(
            absl::MakeConstSpan(copied).subspan(row * kVocab, kVocab), params, {}, position));
      }
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    seconds.push_back(took.count());
    state.SetIterationTime(took.count());
  }
  state.counters["us"] = 1e6 * Median(seconds);
  state.counters["open"] = open;
}

void RegisterHead() {
  for (const int64_t num_rows : {1, 8, 16, 64, 256}) {
    const auto add = [&](const std::string& name, const auto& run) {
      benchmark::RegisterBenchmark(absl::StrCat(name, "/rows:", num_rows).c_str(), run)
          ->UseManualTime()
          ->MinTime(0.05);
    };
    add("Summarize/greedy",
        [=](benchmark::State& state) { Summarize(state, LogitQuestion(), num_rows); });
    add("Summarize/top_p", [=](benchmark::State& state) {
      Summarize(state, QuestionFor(SamplingOf(/*is_plain=*/false), 7), num_rows);
    });
    add("Summarize/plain", [=](benchmark::State& state) {
      Summarize(state, QuestionFor(SamplingOf(/*is_plain=*/true), 7), num_rows);
    });
    for (const bool is_plain : {false, true}) {
      const std::string name = is_plain ? "/plain" : "/top_p";
      add("Sample/summaries" + name, [=](benchmark::State& state) {
        Sample(state, /*from_summaries=*/true, is_plain, num_rows);
      });
      add("Sample/copies" + name, [=](benchmark::State& state) {
        Sample(state, /*from_summaries=*/false, is_plain, num_rows);
      });
    }
  }
}

void Register() {
  struct Shape {
    int64_t rows, cols;
  };
  constexpr Shape kShapes[] = {
      {2048, 7168}, {7168, 2048}, {24576, 1536}, {7168, 16384}, {129280, 7168}};
  for (const DType dtype :
       {DType::kQ8_0, DType::kQ4_K, DType::kQ2_K, DType::kBF16, DType::kQ6_K, DType::kQ5_K,
        DType::kQ4_0, DType::kQ3_K, DType::kF8E4M3, DType::kF16, DType::kF32}) {
    const bool often = dtype == DType::kQ8_0 || dtype == DType::kQ4_K || dtype == DType::kQ2_K ||
                       dtype == DType::kBF16;
    for (const Shape& shape : kShapes) {
      for (const int64_t num_rows : {1, 4, 16, 64, 256, 512}) {
        if (num_rows > 16 && shape.rows > 24576) continue;
        if (!often && (shape.cols != 16384 || (num_rows != 1 && num_rows != 16))) continue;
        if (BlockOf(dtype).values == 1 && num_rows > 64) continue;
        const std::string name = absl::StrCat("Product/", DTypeName(dtype), "/", shape.rows, "x",
                                              shape.cols, "/rows:", num_rows);
        benchmark::RegisterBenchmark(name.c_str(), Product, dtype, shape.rows, shape.cols, num_rows)
            ->UseManualTime()
            ->MinTime(0.02);
      }
    }
  }
  for (const DType dtype : {DType::kQ4_K, DType::kQ2_K}) {
    for (const int64_t num_rows : {1, 8, 64, 256, 512}) {
      const std::string name = absl::StrCat("ExpertLayer/", DTypeName(dtype), "/rows:", num_rows);
      benchmark::RegisterBenchmark(name.c_str(), ExpertLayer, dtype, num_rows)
          ->UseManualTime()
          ->MinTime(0.05);
    }
  }
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::Register();
  caravan::RegisterHead();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
