// A controller whose workers say what their boxes can do.

#include <string>
#include <vector>

#include "cluster/box_json.h"
#include "cluster/known_boxes.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

/// 20 layers that take a token 10 ms each at 1 G multiply-adds/s: hops are nothing beside that.
ModelCost SlowCost() {
  ModelCost cost = SmallCost();
  cost.layers.assign(20, cost.layers.front());
  for (LayerCost& layer : cost.layers) {
    layer.weight_bytes = 10'000;
    layer.flops_per_token = 20'000'000;
  }
  return cost;
}

ModelConfig SlowConfig() {
  ModelConfig config;
  config.kv_lora_rank = 1;
  return config;
}

/// A box that does so many multiply-adds a second, in G.
v1::Registration WithBox(double rate) {
  Box box = *FindBox("cpu");
  box.cpu.multiply_adds = 1e9 * rate;
  nlohmann::json json = BoxToJson(box);
  for (nlohmann::json& part : json) {
    if (part.is_object()) part.erase("sources");
  }
  v1::Registration registration;
  registration.set_box(json.dump());
  return registration;
}

TEST(TimedClusterTest, WorkersThatSayWhatTheirBoxesCanAreGivenLayersByTime) {
  FakeCluster cluster(2, SlowCost(), SlowConfig());
  FakeWorker* const slow = cluster.Join("slow", 100 * kWhole, false, WithBox(1));
  FakeWorker* const fast = cluster.Join("fast", 100 * kWhole, false, WithBox(4));
  slow->orders.erase(slow->orders.begin());
  fast->orders.erase(fast->orders.begin());
  const v1::Stage of_slow = OnlyLoad(slow->TakeOrders()).stage();
  const v1::Stage of_fast = OnlyLoad(fast->TakeOrders()).stage();
  EXPECT_EQ(of_slow.end_layer() - of_slow.first_layer(), 4u);
  EXPECT_EQ(of_fast.end_layer() - of_fast.first_layer(), 16u);
  const v1::GetStatusResponse status = cluster.Status();
  EXPECT_EQ(status.forecast().jobs(), 8u);
  // Two micro-batches of four, 160 ms for either in each stage.
  EXPECT_NEAR(status.forecast().tokens_per_s(), 8 / 0.32, 0.1);
  EXPECT_EQ(status.forecast().bottleneck(), "arithmetic");
  // Somebody comes who would make it slower, and says so.
  cluster.Ready(slow, 1);
  cluster.Ready(fast, 1);
  cluster.Join("slower", 100 * kWhole, false, WithBox(0.01));
  EXPECT_EQ(cluster.Status().pipeline_state(),
            "serving; spare: worker 3 (slower), with which it would not be faster by "
            "5%");
  EXPECT_EQ(cluster.Status().plan_version(), 1u);
}

TEST(TimedClusterTest, SomebodyWhoMakesItFasterIsPreparedFor) {
  FakeCluster cluster(2, SlowCost(), SlowConfig());
  std::vector<FakeWorker*> workers = {cluster.Join("box-a", 100 * kWhole, false, WithBox(2)),
                                      cluster.Join("box-b", 100 * kWhole, false, WithBox(2))};
  for (FakeWorker* worker : workers) {
    cluster.Ready(worker, 1);
    worker->TakeOrders();
  }
  ASSERT_TRUE(cluster.Status().serving());
  workers.push_back(cluster.Join("box-c", 100 * kWhole, false, WithBox(4)));
  workers.back()->orders.erase(workers.back()->orders.begin());
  EXPECT_EQ(cluster.Status().plan_version(), 1u) << "it goes on meanwhile";
  EXPECT_NE(
      cluster.Status().pipeline_state().find("serving; another plan is prepared by 0 of 3 workers"),
      std::string::npos);
  EXPECT_EQ(cluster.Status().pipeline_state().find("spare"), std::string::npos)
      << cluster.Status().pipeline_state();
  for (FakeWorker* worker : workers) {
    const v1::Stage stage = OnlyPrepare(worker->TakeOrders()).stage().stage();
    EXPECT_EQ(stage.end_layer() - stage.first_layer(), worker == workers[2] ? 10u : 5u);
    cluster.Prepared(worker, 2);
  }
  cluster.WaitUntilQuiet();
  EXPECT_EQ(cluster.Status().plan_version(), 2u);
  EXPECT_TRUE(cluster.Status().has_forecast());
}

TEST(TimedClusterTest, SomebodyWhoseBoxIsNotKnownDoesNotEndAPlanByTime) {
  // Two can hold all, and none alone.
  constexpr uint64_t kMost = 150'000;
  FakeCluster cluster(2, SlowCost(), SlowConfig());
  FakeWorker* const a = cluster.Join("box-a", kMost, false, WithBox(4));
  FakeWorker* const b = cluster.Join("box-b", kMost, false, WithBox(4));
  cluster.Ready(a, 1);
  cluster.Ready(b, 1);
  a->TakeOrders();
  b->TakeOrders();
  FakeWorker* const unknown = cluster.Join("unknown", 2 * kMost);
  EXPECT_EQ(cluster.Status().pipeline_state(),
            "serving; spare: worker 3 (unknown), of whose box nothing is known (caravan worker "
            "--box)");
  EXPECT_EQ(cluster.Status().plan_version(), 1u);
  EXPECT_TRUE(a->TakeOrders().empty());
  // Without its memory no other could go on.
  unknown->TakeOrders();
  cluster.Gone(b);
  EXPECT_EQ(cluster.Status().plan_version(), 2u);
  EXPECT_FALSE(cluster.Status().has_forecast());
}

TEST(TimedClusterTest, AKvCacheThatTheModelCannotHaveIsRefused) {
  FakeCluster cluster(1, SlowCost(), SlowConfig());
  v1::Registration registration = WithBox(4);
  registration.set_name("box-a");
  registration.set_address("10.0.0.1:7000");
  registration.set_device("cpu");
  registration.set_memory_budget_bytes(kWhole);
  registration.set_num_threads(2);
  registration.set_protocol_version(kProtocolVersion);
  registration.set_kv_dtype("Q8_0");
  const absl::Status status = cluster.TryJoin(registration);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "--kv of worker box-a: a KV cache of Q8_0 needs kv_lora_rank to be a multiple of 32; "
            "this model's is 1");
}

TEST(TimedClusterTest, WhereABoxIsNotKnownLayersGoByMemory) {
  FakeCluster cluster(2, SlowCost(), SlowConfig());
  FakeWorker* const known = cluster.Join("known", 100 * kWhole, false, WithBox(4));
  cluster.Join("unknown", 100 * kWhole);
  known->orders.erase(known->orders.begin());
  const v1::Stage stage = OnlyLoad(known->TakeOrders()).stage();
  EXPECT_EQ(stage.end_layer() - stage.first_layer(), 10u);
  EXPECT_FALSE(cluster.Status().has_forecast());
}

TEST(TimedClusterTest, AWorkerThatComesBackAlmostAsFastGetsItsLayersAgain) {
  // Neither can hold all.
  constexpr uint64_t kMost = 150'000;
  FakeCluster cluster(2, SlowCost(), SlowConfig());
  FakeWorker* const a = cluster.Join("box-a", kMost, false, WithBox(4));
  FakeWorker* b = cluster.Join("box-b", kMost, false, WithBox(4));
  a->orders.erase(a->orders.begin());
  const v1::Stage first = OnlyLoad(a->TakeOrders()).stage();
  EXPECT_EQ(first.end_layer() - first.first_layer(), 10u);
  // For which 11 and 9 layers, or 9 and 11, would be better by 4% and 2%.
  for (const double rate : {3.5, 4.5}) {
    cluster.Gone(b);
    EXPECT_EQ(cluster.Status().plan_version(), 0u);
    a->TakeOrders();
    b = cluster.Join("box-b", kMost, false, WithBox(rate));
    const v1::Stage again = OnlyLoad(a->TakeOrders()).stage();
    EXPECT_EQ(again.first_layer(), first.first_layer()) << rate;
    EXPECT_EQ(again.end_layer(), first.end_layer()) << rate;
  }
  cluster.Gone(b);
  a->TakeOrders();
  cluster.Join("box-b", kMost, false, WithBox(3));
  const v1::Stage more = OnlyLoad(a->TakeOrders()).stage();
  EXPECT_GT(more.end_layer() - more.first_layer(), 10u);
}

}  // namespace
}  // namespace caravan
