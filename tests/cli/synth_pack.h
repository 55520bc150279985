#ifndef CARAVAN_TESTS_CLI_SYNTH_PACK_H_
#define CARAVAN_TESTS_CLI_SYNTH_PACK_H_

#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/test_cluster.h"

namespace caravan {

/// Makes a packed model of random weights in the shape of this config.json, its experts in Q8_0,
/// and returns its directory, in the cluster's.
inline std::string MakeSynthPack(TestCluster& cluster, const nlohmann::json& config) {
  const std::string path = cluster.dir().Write("config.json", config.dump());
  const std::string out = cluster.dir().File("pack");
  TestProcess& synth = cluster.Launch(
      "synth", {"synth", "--config", path, "--out", out, "--experts", "q8_0", "--threads", "2"});
  EXPECT_EQ(synth.Wait(), 0) << synth.Transcript();
  return out;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_CLI_SYNTH_PACK_H_
