#ifndef CARAVAN_TESTS_SUPPORT_FAKE_CARD_H_
#define CARAVAN_TESTS_SUPPORT_FAKE_CARD_H_

// A backend whose memory is not the host's, for tests on machines without a card: it is the CPU's
// arithmetic, on memory that only arrays of its own may be. What is not copied there or back is
// noticed, copies beside its work are done as late as their contract allows, and one to what its
// work may still read is noticed too.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/forwarding_backend.h"
#include "kernels/memory.h"

namespace caravan {

class FakeCardMemory : public Memory {
 public:
  explicit FakeCardMemory(int64_t budget_bytes) : budget_bytes_(budget_bytes) {}

  bool is_host() const override { return false; }

  absl::StatusOr<Array> Allocate(int64_t bytes, Use) override {
    if (bytes > budget_bytes_ - taken_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat("the card has no ", bytes, " bytes"));
    }
    taken_bytes_ += bytes;
    auto memory = std::make_unique<std::byte[]>(static_cast<size_t>(bytes));
    std::byte* const data = memory.get();
    (*arrays_)[data] = bytes;
    return Array(Owned{std::move(memory), arrays_}, data, bytes);
  }
  absl::Status CopyIn(const void* host, int64_t bytes, void* to) override {
    CARAVAN_CHECK(bytes == 0 || (Has(to, bytes) && !Has(host, 1)));
    if (bytes > 0) std::memcpy(to, host, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::Status CopyOut(const void* from, int64_t bytes, void* host) override {
    if (const absl::StatusCode code = fails_; code != absl::StatusCode::kOk) {
      return absl::Status(code, "the card says no");
    }
    CARAVAN_CHECK(bytes == 0 || (Has(from, bytes) && !Has(host, 1)));
    copied_out_bytes_ += bytes;
    if (bytes > 0) std::memcpy(host, from, static_cast<size_t>(bytes));
    read_.clear();
    return absl::OkStatus();
  }
  absl::Status Copy(const void* from, int64_t bytes, void* to) override {
    CARAVAN_CHECK(bytes == 0 || (Has(from, bytes) && Has(to, bytes)));
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::Status Clear(void* to, int64_t bytes) override {
    CARAVAN_CHECK(bytes == 0 || Has(to, bytes));
    if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<CopyQueue>> MakeCopyQueue() override {
    return std::make_unique<LateCopies>(*this);
  }

  int64_t taken_bytes() const override { return taken_bytes_; }
  /// So far.
  int64_t copied_out_bytes() const { return copied_out_bytes_; }
  /// An operation was asked for that reads this, and is not known to be done.
  void Reads(const std::byte* data) { read_.push_back(data); }
  /// What is copied out fails with `code` from now on; kOk: no more. Any thread.
  void Fail(absl::StatusCode code) { fails_ = code; }

 private:
  using Arrays = std::map<const std::byte*, int64_t>;  // the bytes of each

  /// Where it ends, the array is none any more.
  struct Owned {
    std::unique_ptr<std::byte[]> memory;
    std::shared_ptr<Arrays> arrays;

    Owned(std::unique_ptr<std::byte[]> taken, std::shared_ptr<Arrays> among)
        : memory(std::move(taken)), arrays(std::move(among)) {}
    Owned(Owned&&) = default;
    ~Owned() {
      if (memory != nullptr) arrays->erase(memory.get());
    }
  };

  class LateCopies : public CopyQueue {
   public:
    explicit LateCopies(FakeCardMemory& memory) : memory_(memory) {}
    absl::Status Pin(std::byte*, int64_t) override { return absl::OkStatus(); }
    absl::Status Begin(const std::byte* host, int64_t bytes, std::byte* to) override {
      CARAVAN_CHECK(memory_.Has(to, bytes));
      for (const std::byte* const data : memory_.read_)
        CARAVAN_CHECK(data < to || data >= to + bytes);
      std::memset(to, 0xff, static_cast<size_t>(bytes));  // of no use until it is there
      begun_.push_back({host, bytes, to});
      return absl::OkStatus();
    }
    absl::Status Precede() override { return Wait(); }
    absl::Status Follow() override {
      memory_.read_.clear();
      return absl::OkStatus();
    }
    absl::Status Wait() override {
      for (const Begun& copy : std::exchange(begun_, {})) {
        std::memcpy(copy.to, copy.host, static_cast<size_t>(copy.bytes));
      }
      return absl::OkStatus();
    }

   private:
    struct Begun {
      const std::byte* host;
      int64_t bytes;
      std::byte* to;
    };
    FakeCardMemory& memory_;
    std::vector<Begun> begun_;
  };

  /// Whether all of that lies in an array.
  bool Has(const void* data, int64_t bytes) const {
    const auto* const first = static_cast<const std::byte*>(data);
    auto after = arrays_->upper_bound(first);
    if (after == arrays_->begin()) return false;
    --after;
    return first + bytes <= after->first + after->second;
  }

  const int64_t budget_bytes_;
  std::atomic<absl::StatusCode> fails_ = absl::StatusCode::kOk;
  int64_t taken_bytes_ = 0;  // by arrays that are gone too
  int64_t copied_out_bytes_ = 0;
  std::vector<const std::byte*> read_;
  const std::shared_ptr<Arrays> arrays_ = std::make_shared<Arrays>();
};

class FakeCard : public ForwardingBackend {
 public:
  explicit FakeCard(std::unique_ptr<Backend> cpu, int64_t budget_bytes = int64_t{1} << 30)
      : ForwardingBackend(std::move(cpu)), memory_(budget_bytes) {}
  std::string Name() const override { return "fake card"; }
  FakeCardMemory& memory() override { return memory_; }
  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    WatchedBatches watched(experts, memory_);
    return backend().RoutedExperts(watched, x, num_rows, expert_ids, weights, k, out);
  }

 private:
  /// A card asks for a batch's work before it asks for the next batch.
  class WatchedBatches : public ExpertBatches {
   public:
    WatchedBatches(ExpertBatches& batches, FakeCardMemory& memory)
        : batches_(batches), memory_(memory) {}
    absl::StatusOr<absl::Span<const LoadedExpert>> Next() override {
      absl::StatusOr<absl::Span<const LoadedExpert>> batch = batches_.Next();
      if (!batch.ok()) return batch;
      for (const LoadedExpert& expert : *batch) {
        for (const Matrix* w : {&expert.weights.gate, &expert.weights.up, &expert.weights.down}) {
          memory_.Reads(w->data);
        }
      }
      return batch;
    }
    bool ascending() const override { return batches_.ascending(); }

   private:
    ExpertBatches& batches_;
    FakeCardMemory& memory_;
  };

  FakeCardMemory memory_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_FAKE_CARD_H_
