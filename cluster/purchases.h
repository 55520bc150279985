#ifndef CARAVAN_CLUSTER_PURCHASES_H_
#define CARAVAN_CLUSTER_PURCHASES_H_

// What could be bought for boxes, and what the cluster gives then. Prices are those of
// known_boxes.h. Pure functions.

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "cluster/box_json.h"
#include "cluster/forecast.h"

namespace caravan {

struct Purchase {
  std::string what;             // "a second drive with the same files in each of 3 boxes 3060"
  double price_yuan = 0;        // 0: not known
  bool by_the_hour = false;     // rented: the price is of an hour
  std::vector<BoxCount> boxes;  // all, with it
};

/// Of each kind of box: one more; in each of them a faster drive or a second one, 32 GiB more
/// memory, a second card or a better one. Besides a rented box with an A100, in the network of the
/// first.
std::vector<Purchase> PossiblePurchases(absl::Span<const BoxCount> boxes);

/// A purchase, and what it changes.
struct PurchaseGain {
  Purchase purchase;
  double tokens_per_second = 0;  // with it
  double gain = 0;               // tokens/s more

  /// 0 where the price is not known.
  double gain_per_1000_yuan() const {
    return purchase.price_yuan == 0 ? 0 : gain / purchase.price_yuan * 1000;
  }
};

/// Of those after which the model fits, and which PlanBoxes can plan (a new kind may be one too
/// many); `now`: what the boxes give as they are (0: the model does not fit). Most gain for money
/// first, then those of unknown price, what is rented last.
std::vector<PurchaseGain> RankPurchases(const ModelConfig& config, const ModelCost& cost,
                                        absl::Span<const BoxCount> boxes, const ForecastLoad& load,
                                        double now);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PURCHASES_H_
