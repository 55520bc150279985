// The expert store on disks that fail.

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/experts/expert_store_testing.h"
#include "worker/experts/expert_store.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

class UnreadableExpertsTest : public ExpertStoreTest {};

// A read that fails after its visit was left has nothing to do with the next one.
TEST_F(UnreadableExpertsTest, AReadOfAnotherVisitThatFailsIsTriedAgain) {
  bool broken = true;
  fault_ = [&broken](const FileRead& /*read*/) {
    return broken ? absl::DataLossError("the disk says no") : absl::OkStatus();
  };
  HeldQueue* queue = nullptr;
  ExpertStore::Options options = HeldOptions(&queue);
  options.make_queue =
      [this, &queue, make = options.make_queue](
          const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
    absl::StatusOr<std::unique_ptr<ReadQueue>> real = ReadQueue::Create(reads);
    if (!real.ok()) return real.status();
    auto held =
        std::make_unique<HeldQueue>(std::make_unique<UnrulyQueue>(*std::move(real), seed_, fault_));
    queue = held.get();
    return held;
  };
  const std::unique_ptr<ExpertStore> store = MakeStore(16, options);
  const Choice choice({1, 5});
  queue->Hold();
  store->Visit(1, choice.ids, choice.weights);  // and leaves
  broken = false;
  ExpertBatches& again = store->Visit(1, choice.ids, choice.weights);
  queue->LetGo();
  const auto taken = Take(again, 1);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(*taken, choice.needed);
}

TEST_F(UnreadableExpertsTest, AReadThatFailsFailsItsVisitOnly) {
  bool broken = true;
  fault_ = [&broken](const FileRead& read) {
    return broken && IsOf(read, 1, 6) ? absl::DataLossError("the disk says no") : absl::OkStatus();
  };
  for (const int slots : {4, 9, 30, PackedToy::kAllExperts}) {
    for (const int rows : {1, 64, 600}) {
      broken = true;
      const std::unique_ptr<ExpertStore> store = MakeStore(slots);
      Rng rng(5);
      Choice choice(rng, rows);
      choice.needed.insert({0, 3, 6, 7});
      choice.ids.insert(choice.ids.end(), {0, 3, 6, 7});
      choice.weights.resize(choice.ids.size(), 1);
      for (int turn = 0; turn < 3; ++turn) {
        ExpectLost(VisitAll(*store, 1, choice), 1, 6, "the disk says no");
        ASSERT_TRUE(VisitAll(*store, 1, Choice({0, 3, 5, 7})).ok());
        ASSERT_TRUE(VisitAll(*store, 2, Choice(rng, rows)).ok());
      }
      broken = false;
      ASSERT_TRUE(VisitAll(*store, 1, choice).ok()) << slots << " slots, " << rows << " rows";
    }
  }
}

TEST_F(UnreadableExpertsTest, ReadsThatFailNowAndThenDoNoHarm) {
  Rng faults(7);
  fault_ = [&faults](const FileRead& /*read*/) {
    return faults() % 20 == 0 ? absl::DataLossError("now and then") : absl::OkStatus();
  };
  Rng rng(8);
  int failed = 0;
  for (const int slots : {4, 7, 17, 40}) {
    const std::unique_ptr<ExpertStore> store = MakeStore(slots);
    for (int turn = 0; turn < 200; ++turn) {
      const int rows = turn % 50 == 7 ? 600 : 1 << RandomInt(rng, 0, 6);
      const absl::Status status = VisitAll(*store, 1 + turn % 3, Choice(rng, rows));
      if (!status.ok()) {
        ++failed;
        EXPECT_THAT(std::string(status.message()), HasSubstr("now and then"));
      }
      ASSERT_FALSE(HasFailure()) << slots << " slots, turn " << turn;
    }
  }
  EXPECT_GT(failed, 20);
}

TEST_F(UnreadableExpertsTest, NothingIsGivenOfWrongBytes) {
  const std::unique_ptr<ExpertStore> store = MakeStore(8);
  toy_->Flip(2, 3);
  const Choice choice({1, 2, 3, 4});
  ExpectLost(VisitAll(*store, 2, choice), 2, 3, "hash");
  ExpectLost(VisitAll(*store, 2, choice), 2, 3, "hash");
  Rng rng(1);
  const Choice many(rng, 600);
  ExpectLost(VisitAll(*store, 2, many), 2, 3, "hash");
  toy_->Flip(2, 3);
  EXPECT_TRUE(VisitAll(*store, 2, choice).ok());
  EXPECT_TRUE(VisitAll(*store, 2, many).ok());
}

TEST_F(UnreadableExpertsTest, ReadsAfterTheFirstAreComparedWhereAsked) {
  for (const auto verify :
       {ExpertStore::Verify::kNever, ExpertStore::Verify::kFirst, ExpertStore::Verify::kEvery}) {
    ExpertStore::Options options = Options();
    options.policy = "lru";
    options.verify = verify;
    const std::unique_ptr<ExpertStore> store = MakeStore(8, options);
    const auto visit = [&](int layer, const std::vector<int32_t>& row) {
      const Choice choice(row);
      ExpertBatches& batches = store->Visit(layer, choice.ids, choice.weights);
      while (true) {
        const auto batch = batches.Next();
        if (!batch.ok() || batch->empty()) return batch.status();
      }
    };
    ASSERT_TRUE(visit(1, {1, 2, 3, 4}).ok());
    ASSERT_TRUE(visit(1, {5, 6, 7, 8}).ok());
    ASSERT_TRUE(visit(1, {9, 10, 11, 12}).ok());  // 1 to 4 are out
    toy_->Flip(1, 2);
    EXPECT_EQ(visit(1, {1, 2, 3, 4}).ok(), verify != ExpertStore::Verify::kEvery);
    toy_->Flip(2, 2);
    EXPECT_EQ(visit(2, {1, 2, 3, 4}).ok(), verify == ExpertStore::Verify::kNever);
    toy_->Flip(1, 2);
    toy_->Flip(2, 2);
  }
}

// Its steps fail by its name, and all others run.
TEST_F(UnreadableExpertsTest, AHotExpertThatCannotBeReadIsLeftOutAtTheStart) {
  fault_ = [&](const FileRead& read) {
    return read.offset == toy_->OffsetOf(1, 3) && read.file->path() == toy_->PathOf(1)
               ? absl::DataLossError("the disk says no")
               : absl::OkStatus();
  };
  const std::unique_ptr<ExpertStore> store = MakeStore(16);
  for (const int expert : {1, 3, 5}) store->cache().SetScore({1, expert}, 9);
  for (const int expert : {2, 4}) store->cache().SetScore({2, expert}, 9);
  int64_t last = 0;
  ASSERT_TRUE(store
                  ->Warm([&](int64_t done, int64_t) {
                    last = done;
                    return true;
                  })
                  .ok());
  EXPECT_EQ(last, 5 * toy_->run_bytes());
  ASSERT_TRUE(VisitAll(*store, 1, Choice({1, 5, 7, 9})).ok());
  ASSERT_TRUE(VisitAll(*store, 2, Choice({2, 4, 6, 8})).ok());
  EXPECT_GE(store->counters().hits, 2);
  ExpectLost(VisitAll(*store, 1, Choice({1, 3, 5, 7})), 1, 3, "the disk says no");
}

TEST_F(UnreadableExpertsTest, RefusesWhatIsNoPackOfThisMachine) {
  class Remote : public TensorSource {
   public:
    const TensorInfo* Find(absl::string_view) const override { return nullptr; }
    absl::Status ReadPart(absl::string_view, int64_t, absl::Span<std::byte>) const override {
      return absl::UnavailableError("");
    }
  };
  const auto refused =
      ExpertStore::Create(toy_->config(), toy_->whole(), Remote(), int64_t{1} << 30, Options());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("caravan pack"));
}

TEST(TruncatedExpertFileTest, ATruncatedFileIsNamed) {
  const PackedToy toy;
  const std::string path = toy.PathOf(2);
  const int64_t budget = 8 * toy.run_bytes();
  const auto store = ExpertStore::Create(toy.config(), toy.whole(), toy.model(), budget, {});
  ASSERT_TRUE(store.ok()) << store.status();
  std::filesystem::resize_file(path, static_cast<uintmax_t>(toy.OffsetOf(2, 9)));
  const auto visit = [&](const std::vector<int32_t>& row) {
    const Choice choice(row);
    ExpertBatches& batches = (*store)->Visit(2, choice.ids, choice.weights);
    while (true) {
      const auto batch = batches.Next();
      if (!batch.ok() || batch->empty()) return batch.status();
    }
  };
  EXPECT_TRUE(visit({0, 1, 2, 8}).ok());
  const absl::Status status = visit({0, 1, 2, 9});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  EXPECT_TRUE(visit({0, 1, 2, 8}).ok());

  const auto refused = ExpertStore::Create(toy.config(), toy.whole(), toy.model(), budget, {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(path));
}

}  // namespace
}  // namespace caravan
