// Named by ProcessGroupGloo.hpp; nothing of it is used here.
#pragma once
