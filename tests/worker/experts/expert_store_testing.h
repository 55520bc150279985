#ifndef CARAVAN_TESTS_WORKER_EXPERTS_EXPERT_STORE_TESTING_H_
#define CARAVAN_TESTS_WORKER_EXPERTS_EXPERT_STORE_TESTING_H_

// What the tests of the expert store share: rows that choose experts, and whether they get them.

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/experts/expert_testing.h"
#include "worker/experts/expert_store.h"

namespace caravan {

using Rng = std::mt19937_64;

inline int RandomInt(Rng& rng, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(rng);
}

/// Rows that choose kChosen experts each.
struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  std::set<int32_t> needed;

  /// Random ones out of the first `of`.
  Choice(Rng& rng, int rows, int of = PackedToy::kExperts) {
    std::vector<int32_t> all(static_cast<size_t>(of));
    for (int e = 0; e < of; ++e) all[static_cast<size_t>(e)] = e;
    for (int row = 0; row < rows; ++row) {
      std::shuffle(all.begin(), all.end(), rng);
      Add({all.begin(), all.begin() + PackedToy::kChosen});
    }
  }
  explicit Choice(const std::vector<int32_t>& row) { Add(row); }

 private:
  void Add(std::vector<int32_t> row) {
    std::sort(row.begin(), row.end());
    ids.insert(ids.end(), row.begin(), row.end());
    needed.insert(row.begin(), row.end());
    weights.resize(ids.size(), 0.25f);
  }
};

/// Stores of a toy whose reads end in any order, and as `fault_` says.
class ExpertStoreTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { toy_ = new PackedToy; }
  static void TearDownTestSuite() { delete toy_; }

  ExpertStore::Options Options() {
    ExpertStore::Options options;
    options.make_queue =
        [this](const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
      absl::StatusOr<std::unique_ptr<ReadQueue>> queue = ReadQueue::Create(reads);
      if (!queue.ok()) return queue.status();
      return std::make_unique<UnrulyQueue>(*std::move(queue), seed_, fault_);
    };
    return options;
  }

  std::unique_ptr<ExpertStore> MakeStore(int slots, const ExpertStore::Options& options) {
    auto store = ExpertStore::Create(toy_->config(), toy_->whole(), toy_->model(),
                                     slots * toy_->run_bytes(), options);
    CARAVAN_CHECK(store.ok());
    CARAVAN_CHECK((*store)->num_slots() == slots);
    return *std::move(store);
  }
  std::unique_ptr<ExpertStore> MakeStore(int slots) { return MakeStore(slots, Options()); }

  static const std::vector<std::byte>& BytesOf(const std::string& tensor) {
    static std::map<std::string, std::vector<std::byte>>& all =
        *new std::map<std::string, std::vector<std::byte>>;
    std::vector<std::byte>& bytes = all[tensor];
    if (bytes.empty()) {
      bytes.resize(static_cast<size_t>(toy_->model().Find(tensor)->num_bytes()));
      CARAVAN_CHECK(toy_->model().Read(tensor, absl::MakeSpan(bytes)).ok());
    }
    return bytes;
  }

  /// Takes experts up to `most` batches; all of the right weights, none twice, in order where that
  /// is promised. Returns them.
  static absl::StatusOr<std::set<int32_t>> Take(ExpertBatches& batches, int layer,
                                                int most = 1000) {
    std::set<int32_t> taken;
    int32_t last = -1;
    while (most-- > 0) {
      const absl::StatusOr<absl::Span<const LoadedExpert>> batch = batches.Next();
      if (!batch.ok()) return batch.status();
      if (batch->empty()) break;
      for (const LoadedExpert& expert : *batch) {
        EXPECT_TRUE(taken.insert(expert.id).second) << expert.id << " is given twice";
        if (batches.ascending()) {
          EXPECT_LT(last, expert.id);
        }
        last = expert.id;
        const std::string prefix = absl::StrCat("model.layers.", layer, ".mlp.experts.", expert.id);
        for (const auto& [name, matrix] : {std::pair{".gate_proj.weight", expert.weights.gate},
                                           std::pair{".up_proj.weight", expert.weights.up},
                                           std::pair{".down_proj.weight", expert.weights.down}}) {
          const std::vector<std::byte>& bytes = BytesOf(prefix + name);
          EXPECT_EQ(std::memcmp(matrix.data, bytes.data(), bytes.size()), 0) << prefix << name;
        }
      }
    }
    return taken;
  }

  static absl::Status VisitAll(ExpertStore& store, int layer, const Choice& choice) {
    absl::StatusOr<std::set<int32_t>> taken =
        Take(store.Visit(layer, choice.ids, choice.weights), layer);
    if (!taken.ok()) return taken.status();
    EXPECT_EQ(*taken, choice.needed);
    return absl::OkStatus();
  }

  void ExpectLost(const absl::Status& status, int layer, int expert, const std::string& says) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()),
                ::testing::AllOf(
                    ::testing::HasSubstr(absl::StrCat("layer ", layer, ", expert ", expert, ",")),
                    ::testing::HasSubstr(toy_->PathOf(layer)), ::testing::HasSubstr(says)));
  }

  /// As one row's router would for the next layer, if it may; whether it did.
  static bool Guess(ExpertStore& store, int layer, const std::vector<int32_t>& row) {
    if (!store.WantsGuess(layer)) return false;
    const Choice choice(row);
    store.Guess(layer, choice.ids, choice.weights, absl::ZeroDuration());
    return true;
  }

  /// Whether a read is that of this expert.
  static bool IsOf(const FileRead& read, int layer, int expert) {
    return read.file->path() == toy_->PathOf(layer) && read.offset == toy_->OffsetOf(layer, expert);
  }

  static inline PackedToy* toy_ = nullptr;
  uint64_t seed_ = 1;
  UnrulyQueue::Fault fault_;
};

/// Options whose queue is `*queue`, once the store is made.
inline ExpertStore::Options HeldOptions(HeldQueue** queue) {
  ExpertStore::Options options;
  options.guesses = ExpertStore::Guesses::kNever;
  options.make_queue =
      [queue](const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
    absl::StatusOr<std::unique_ptr<ReadQueue>> real = ReadQueue::Create(reads);
    if (!real.ok()) return real.status();
    auto held = std::make_unique<HeldQueue>(*std::move(real));
    *queue = held.get();
    return held;
  };
  return options;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_EXPERTS_EXPERT_STORE_TESTING_H_
