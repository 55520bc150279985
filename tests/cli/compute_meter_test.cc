// The meter against a backend that takes as long as it is told: what comes out must be that.

#include "cli/compute_meter.h"

#include <limits>
#include <memory>
#include <set>
#include <stop_token>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/tiled/tile_layout.h"
#include "tests/support/fake_card.h"

namespace caravan {
namespace {

/// On a card's memory; computes nothing, and moves the clock.
class TimedBackend : public ForwardingBackend {
 public:
  explicit TimedBackend(SimulatedClock& clock)
      : ForwardingBackend(*MakeCpuBackend({})), clock_(clock) {}

  Memory& memory() override { return card; }

  void MatMul(const Matrix& w, const float* /*x*/, int64_t num_rows, float* /*out*/) override {
    matrices.insert(w.data);
    matrix_bytes = MatrixBytes(w);
    Take(static_cast<double>(MatrixBytes(w)) / read_bytes +
         static_cast<double>(w.rows * w.cols * num_rows) / multiply_adds);
  }
  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& /*kv*/,
                    const float* /*q*/, float* /*out*/) override {
    double work = 0;
    for (const SequenceRows& sequence : sequences) {
      for (int64_t row = 0; row < sequence.num_rows; ++row) {
        work += static_cast<double>((sequence.first_position + row + 1) * shape.num_heads *
                                        (shape.kv_lora_rank + shape.kv_width()) +
                                    kv_b.rows * kv_b.cols);
      }
    }
    Take(work / multiply_adds);
  }

  FakeCardMemory card{int64_t{1} << 30};
  double multiply_adds = 1e12;  // a second
  double read_bytes = std::numeric_limits<double>::infinity();
  int slow_call = -1;  // takes ten seconds more, as on a machine that others use
  int calls = 0;
  std::set<const std::byte*> matrices;
  int64_t matrix_bytes = 0;

 private:
  void Take(double seconds) {
    clock_.Advance(absl::Seconds(seconds + (calls++ == slow_call ? 10 : 0)));
  }

  SimulatedClock& clock_;
};

TEST(ComputeMeterTest, ReportsTheRateOfProductsHoweverFastTheyAre) {
  for (const double rate : {1e9, 3e11, 4e14}) {
    SimulatedClock clock;
    TimedBackend backend(clock);
    backend.multiply_adds = rate;
    ComputeMeter meter(backend, absl::Milliseconds(500), {}, clock);
    const absl::StatusOr<double> measured = meter.MultiplyAdds(64);
    ASSERT_TRUE(measured.ok()) << measured.status();
    EXPECT_NEAR(*measured / rate, 1, 1e-3);
  }
}

TEST(ComputeMeterTest, TellsReadingFromMultiplying) {
  SimulatedClock clock;
  TimedBackend backend(clock);
  backend.multiply_adds = 3e11;
  backend.read_bytes = 4e10;
  ComputeMeter meter(backend, absl::Milliseconds(500), {}, clock);
  const absl::StatusOr<ComputeMeter::Products> products = meter.MeasureProducts(128);
  ASSERT_TRUE(products.ok()) << products.status();
  EXPECT_NEAR(products->read_bytes / 4e10, 1, 1e-3);
  EXPECT_NEAR(products->multiply_adds / 3e11, 1, 1e-3);
}

TEST(ComputeMeterTest, GoesThroughMoreWeightsThanCachesHold) {
  SimulatedClock clock;
  TimedBackend backend(clock);
  ComputeMeter meter(backend, absl::Seconds(1), {}, clock);
  ASSERT_TRUE(meter.MultiplyAdds(64).ok());
  EXPECT_GT(static_cast<int64_t>(backend.matrices.size()) * backend.matrix_bytes,
            int64_t{240} << 20);
}

TEST(ComputeMeterTest, CountsOfAttentionTheProjectionsToo) {
  SimulatedClock clock;
  TimedBackend backend(clock);
  backend.multiply_adds = 2e9;
  ComputeMeter meter(backend, absl::Milliseconds(10), {}, clock);
  const absl::StatusOr<double> measured = meter.AttentionMultiplyAdds();
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_NEAR(*measured / 2e9, 1, 1e-3);
}

TEST(ComputeMeterTest, AnInterruptionDoesNotCount) {
  SimulatedClock clock;
  TimedBackend backend(clock);
  backend.multiply_adds = 1e9;
  backend.slow_call = 2;
  ComputeMeter meter(backend, absl::Milliseconds(10), {}, clock);
  const absl::StatusOr<double> measured = meter.MultiplyAdds(16);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_GT(backend.calls, 2);
  EXPECT_NEAR(*measured / 1e9, 1, 1e-3);
}

TEST(ComputeMeterTest, SaysWhatTheBackendSays) {
  SimulatedClock clock;
  TimedBackend backend(clock);
  ComputeMeter meter(backend, absl::Seconds(1), {}, clock);
  backend.card.Fail(absl::StatusCode::kInternal);
  EXPECT_EQ(meter.MultiplyAdds(64).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(meter.AttentionMultiplyAdds().status().code(), absl::StatusCode::kInternal);
}

TEST(ComputeMeterTest, StopsWhenAsked) {
  SimulatedClock clock;
  TimedBackend backend(clock);
  std::stop_source stop;
  ComputeMeter meter(backend, absl::Hours(1), stop.get_token(), clock);
  stop.request_stop();
  EXPECT_EQ(meter.MultiplyAdds(64).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(backend.calls, 1);
}

// The CPU's own backend takes these shapes. How fast it is, is the machine's matter.
TEST(ComputeMeterTest, MeasuresTheCpu) {
  const std::unique_ptr<Backend> backend = *MakeCpuBackend({});
  ComputeMeter meter(*backend, absl::Milliseconds(1));
  const absl::StatusOr<double> products = meter.MultiplyAdds(2);
  ASSERT_TRUE(products.ok()) << products.status();
  EXPECT_GT(*products, 0);
}

}  // namespace
}  // namespace caravan
