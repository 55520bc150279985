#include "coordinator/suspicion.h"

#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

void Interrupt(const std::vector<Suspicion*>& all) { Suspicion::Interrupt(all); }

TEST(SuspicionTest, TheSecondInterruptionMakesSuspectsOfAllInHalvesOfThem) {
  std::vector<Suspicion> jobs(5);
  std::vector<Suspicion*> all;
  for (Suspicion& job : jobs) all.push_back(&job);
  Interrupt(all);
  EXPECT_FALSE(jobs[0].is_suspect());
  EXPECT_EQ(jobs[0].group(), 0);
  Interrupt(all);
  for (const Suspicion& job : jobs) {
    EXPECT_TRUE(job.is_suspect());
    EXPECT_EQ(job.interruptions(), 2);
    EXPECT_EQ(job.group(), 3);
  }
  Interrupt({&jobs[0], &jobs[1], &jobs[2]});
  EXPECT_EQ(jobs[0].group(), 2);
  EXPECT_EQ(jobs[4].group(), 3) << "it did not run";
  Interrupt({&jobs[0], &jobs[1]});
  EXPECT_EQ(jobs[1].group(), 1);
}

TEST(SuspicionTest, WhoRanWithASuspectForTheFirstTimeIsNoneYet) {
  Suspicion old;
  Suspicion fresh;
  Interrupt({&old});
  Interrupt({&old, &fresh});
  EXPECT_EQ(old.group(), 1) << "of the suspects, which are one";
  EXPECT_FALSE(fresh.is_suspect());
}

TEST(SuspicionTest, IsHopelessAfterFiveInARowOfWhichThreeWereAlone) {
  Suspicion job;
  Suspicion other;
  for (int i = 0; i < 20; ++i) Interrupt({&job, &other});
  EXPECT_FALSE(job.is_hopeless()) << "it may be the other one";
  for (int i = 0; i < kMostAlone; ++i) {
    EXPECT_FALSE(job.is_hopeless());
    Interrupt({&job});
  }
  EXPECT_TRUE(job.is_hopeless());
  EXPECT_FALSE(other.is_hopeless());

  Suspicion alone;
  for (int i = 0; i < kMostInterruptions; ++i) {
    EXPECT_FALSE(alone.is_hopeless());
    Interrupt({&alone});
  }
  EXPECT_TRUE(alone.is_hopeless());
}

TEST(SuspicionTest, OnlyTheLastOnesCountAsAlone) {
  Suspicion job;
  Suspicion other;
  for (int i = 0; i < kMostInterruptions; ++i) Interrupt({&job, &other});
  for (int i = 1; i < kMostAlone; ++i) Interrupt({&job});
  Interrupt({&job, &other});
  for (int i = 0; i < kMostAlone; ++i) {
    EXPECT_FALSE(job.is_hopeless());
    Interrupt({&job});
  }
  EXPECT_TRUE(job.is_hopeless());
}

TEST(SuspicionTest, WhatItYieldsClearsIt) {
  Suspicion job;
  for (int i = 1; i < kMostInterruptions; ++i) Interrupt({&job});
  job.Clear();
  EXPECT_FALSE(job.is_suspect());
  EXPECT_EQ(job.interruptions(), 0);
  for (int i = 1; i < kMostInterruptions; ++i) Interrupt({&job});
  EXPECT_FALSE(job.is_hopeless());
}

}  // namespace
}  // namespace caravan
