#include "coordinator/store/job_ids.h"

#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

TEST(JobIdsTest, AnIdIsNotGivenTwiceAcrossRestarts) {
  const TempDir dir;
  uint64_t next = 0;
  for (int life = 0; life < 3; ++life) {
    auto store = JobStore::Open(dir.File("a.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    auto ids = JobIds::Reserve(store->get());
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_GE(ids->first(), next);
    EXPECT_GE(ids->first(), 1u);
    // More than is reserved at once.
    for (next = ids->first(); next < ids->first() + 250'000; next += 1000) {
      ASSERT_TRUE(ids->Extend(next).ok());
    }
  }
}

TEST(JobIdsTest, ReservesWithoutGapsWhileItRuns) {
  const TempDir dir;
  auto store = JobStore::Open(dir.File("a.db"));
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(*(*store)->ReserveJobIds(10), 1u);
  EXPECT_EQ(*(*store)->ReserveJobIds(5), 11u);
  EXPECT_EQ(*(*store)->ReserveJobIds(1), 16u);
}

}  // namespace
}  // namespace caravan
