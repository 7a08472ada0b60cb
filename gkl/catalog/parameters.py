"""The number of parameters of each network in the catalog, including parameters that no image passes through.

A test compares these numbers with the networks. Free of torch.
"""

from __future__ import annotations

_OWN: dict[str, dict[str, int]] = {
    "tiny_cnn": {"digits": 3_682, "fashion_mnist": 26_722, "cifar10": 34_546, "cifar100": 37_516},
    "small_cnn": {"digits": 57_482, "fashion_mnist": 426_122, "cifar10": 549_290, "cifar100": 560_900},
    "resnet_18": {"cifar10": 11_173_962, "cifar100": 11_220_132},
    "preact_resnet_18": {"cifar10": 11_171_146, "cifar100": 11_217_316},
    "preact_resnet_18_silu": {"fashion_mnist": 12_547_274, "cifar10": 12_548_426, "cifar100": 12_594_596},
    "wrn_28_10_silu": {"fashion_mnist": 36_478_906, "cifar10": 36_479_194, "cifar100": 36_536_884},
    "wrn_34_10": {"cifar10": 46_160_474, "cifar100": 46_218_164},
    "wrn_70_16_silu": {"cifar10": 266_796_506, "cifar100": 266_888_756},
    "resnet_8": {"digits": 77_754, "fashion_mnist": 77_754, "cifar10": 78_042, "cifar100": 83_892},
    "resnet_20": {"digits": 272_186, "fashion_mnist": 272_186, "cifar10": 272_474, "cifar100": 278_324},
    "resnet_32": {"fashion_mnist": 466_618, "cifar10": 466_906, "cifar100": 472_756},
    "resnet_56": {"fashion_mnist": 855_482, "cifar10": 855_770, "cifar100": 861_620},
    "resnet_110": {"fashion_mnist": 1_730_426, "cifar10": 1_730_714, "cifar100": 1_736_564},
    "resnet_8x4": {"fashion_mnist": 1_209_834, "cifar10": 1_210_410, "cifar100": 1_233_540},
    "resnet_32x4": {"fashion_mnist": 7_410_154, "cifar10": 7_410_730, "cifar100": 7_433_860},
    "resnet_50": {"fashion_mnist": 23_519_690, "cifar10": 23_520_842, "cifar100": 23_705_252},
    "wrn_16_2": {"digits": 691_386, "fashion_mnist": 691_386, "cifar10": 691_674, "cifar100": 703_284},
    "wrn_40_1": {"fashion_mnist": 563_642, "cifar10": 563_930, "cifar100": 569_780},
    "wrn_40_2": {"fashion_mnist": 2_243_258, "cifar10": 2_243_546, "cifar100": 2_255_156},
    "vgg_8": {"fashion_mnist": 3_917_706, "cifar10": 3_918_858, "cifar100": 3_965_028},
    "vgg_13": {"fashion_mnist": 9_414_858, "cifar10": 9_416_010, "cifar100": 9_462_180},
    "mobilenet_v2": {"fashion_mnist": 697_258, "cifar10": 697_546, "cifar100": 812_836},
    "shufflenet_v1": {"fashion_mnist": 862_720, "cifar10": 862_768, "cifar100": 949_258},
    "shufflenet_v2": {"fashion_mnist": 1_263_230, "cifar10": 1_263_278, "cifar100": 1_355_528},
    "imagenet_resnet_18": {"imagenet": 11_689_512},
    "imagenet_resnet_34": {"imagenet": 21_797_672},
    "imagenet_resnet_50": {"imagenet": 25_557_032},
    "imagenet_resnext_101_32x4d": {"imagenet": 44_177_704},
    "mobilenet_v1": {"imagenet": 4_231_976},
}

_OF_ZOO: dict[str, dict[int, str]] = {
    "cifar10/Linf": {
        5_849_050: "Ding2020MMA",
        11_171_146: "Andriushchenko2020Understanding Wong2020Fast",
        11_173_962: "Sehwag2021Proxy_R18 Addepalli2021Towards_RN18 Addepalli2022Efficient_RN18",
        12_548_426: """
            Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_extra Rade2021Helper_R18_ddpm
            Gowal2021Improving_R18_ddpm_100m
        """,
        23_520_842: "Engstrom2019Robustness",
        25_872_154: "Debenedetti2022Light_XCiT-S12",
        36_479_194: """
            Hendrycks2019Using Gowal2020Uncovering_28_10_extra Rebuffi2021Fixing_28_10_cutmix_ddpm
            Rade2021Helper_ddpm Gowal2021Improving_28_10_ddpm_100m Standard Pang2022Robustness_WRN28_10
            Wang2023Better_WRN-28-10 Xu2023Exploring_WRN-28-10 Cui2023Decoupled_WRN-28-10
        """,
        36_479_196: "Dai2021Parameterizing",
        38_119_866: """
            Carmon2019Unlabeled Sehwag2020Hydra Wang2020Improving Wu2020Adversarial_extra Zhang2020Geometry
            Sridhar2021Robust
        """,
        45_893_290: "Debenedetti2022Light_XCiT-M12",
        46_160_474: """
            Wu2020Adversarial Sehwag2021Proxy Rade2021Helper_extra Chen2021LTD_WRN34_10 Jia2022LAS-AT_34_10
            Addepalli2022Efficient_WRN_34_10 Cui2023Decoupled_WRN-34-10 Chen2024Data_WRN_34_10
        """,
        48_262_586: """
            Zhang2019Theoretically Huang2020Self Zhang2019You Zhang2020Attacks Sitawarin2020Improving
            Chen2020Efficient Cui2020Learnable_34_10 Addepalli2021Towards_WRN34
        """,
        68_116_698: "Huang2021Exploring Huang2021Exploring_ema",
        70_550_622: "Chen2020Adversarial",
        74_889_098: "Sehwag2021Proxy_ResNest152",
        79_125_466: "Bartoldson2024Adversarial_WRN-82-8",
        103_031_338: "Debenedetti2022Light_XCiT-L12",
        108_528_026: "Sridhar2021Robust_34_15",
        147_291_738: "Huang2022Revisiting_WRN-A4",
        184_531_674: "Rice2020Overfitting Gowal2020Uncovering_34_20 Chen2021LTD_WRN34_20 Chen2024Data_WRN_34_20",
        192_883_056: "Pang2020Boosting",
        192_883_066: "Cui2020Learnable_34_20",
        266_796_506: """
            Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra Rebuffi2021Fixing_70_16_cutmix_ddpm
            Rebuffi2021Fixing_70_16_cutmix_extra Gowal2021Improving_70_16_ddpm_100m Jia2022LAS-AT_70_16
            Pang2022Robustness_WRN70_16 Wang2023Better_WRN-70-16
        """,
        266_856_602: "Kang2021Stable",
        267_240_802: "Peng2023Robust Amini2024MeanSparse_Ra_WRN_70_16",
        365_915_610: "Amini2024MeanSparse_S-WRN-94-16 Bartoldson2024Adversarial_WRN-94-16",
        415_475_162: "Rebuffi2021Fixing_106_16_cutmix_ddpm",
        499_519_993: "Bai2024MixedNUTS",
    },
    "cifar10/L2": {
        5_849_050: "Ding2020MMA",
        11_172_170: "Rice2020Overfitting",
        11_173_962: "Sehwag2021Proxy_R18",
        12_548_426: "Rebuffi2021Fixing_R18_cutmix_ddpm Rade2021Helper_R18_ddpm",
        23_520_842: "Augustin2020Adversarial Engstrom2019Robustness",
        36_479_194: "Rony2019Decoupling Standard Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10",
        46_160_474: """
            Wu2020Adversarial Sehwag2021Proxy Augustin2020Adversarial_34_10
            Augustin2020Adversarial_34_10_extra
        """,
        266_796_506: """
            Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm
            Rebuffi2021Fixing_70_16_cutmix_extra Wang2023Better_WRN-70-16 Amini2024MeanSparse_S-WRN-70-16
        """,
    },
    "cifar10/corruptions": {
        2_243_546: "Hendrycks2020AugMix_WRN",
        6_807_882: "Hendrycks2020AugMix_ResNeXt",
        11_172_170: """
            Kireev2021Effectiveness_Gauss50percent Kireev2021Effectiveness_AugMixNoJSD
            Kireev2021Effectiveness_RLAT Kireev2021Effectiveness_RLATAugMixNoJSD
            Kireev2021Effectiveness_RLATAugMix
        """,
        11_173_962: "Modas2021PRIMEResNet18",
        24_868_032: "Diffenderfer2021Winning_Binary",
        36_479_194: "Standard",
        44_662_922: "Diffenderfer2021Winning_LRR",
        46_160_474: "Addepalli2022Efficient_WRN_34_10",
        48_262_586: "Addepalli2021Towards_WRN34",
        149_208_192: "Diffenderfer2021Winning_Binary_CARD_Deck",
        266_796_506: "Rebuffi2021Fixing_70_16_cutmix_extra_Linf Rebuffi2021Fixing_70_16_cutmix_extra_L2",
        267_977_532: "Diffenderfer2021Winning_LRR_CARD_Deck",
    },
    "cifar100/Linf": {
        11_218_340: "Rice2020Overfitting Addepalli2021Towards_PARN18",
        11_220_132: "Addepalli2022Efficient_RN18",
        12_594_596: "Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_ddpm",
        25_906_804: "Debenedetti2022Light_XCiT-S12",
        36_536_884: """
            Hendrycks2019Using Rebuffi2021Fixing_28_10_cutmix_ddpm Pang2022Robustness_WRN28_10
            Wang2023Better_WRN-28-10 Cui2023Decoupled_WRN-28-10
        """,
        45_939_460: "Debenedetti2022Light_XCiT-M12",
        46_218_164: """
            Wu2020Adversarial Sehwag2021Proxy Addepalli2022Efficient_WRN_34_10
            Cui2020Learnable_34_10_LBGAT9_eps_8_255 Cui2023Decoupled_WRN-34-10
            Cui2023Decoupled_WRN-34-10_autoaug Chen2024Data_WRN_34_10
        """,
        48_320_276: """
            Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6 Chen2020Efficient
            Sitawarin2020Improving Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10 Jia2022LAS-AT_34_10
        """,
        103_100_548: "Debenedetti2022Light_XCiT-L12",
        184_646_964: "Jia2022LAS-AT_34_20",
        192_998_356: "Cui2020Learnable_34_20_LBGAT6",
        266_888_756: """
            Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm
            Pang2022Robustness_WRN70_16 Wang2023Better_WRN-70-16 Amini2024MeanSparse_S-WRN-70-16
        """,
        499_536_677: "Bai2024MixedNUTS",
    },
    "cifar100/corruptions": {
        2_255_156: "Hendrycks2020AugMix_WRN",
        6_900_132: "Hendrycks2020AugMix_ResNeXt",
        11_218_340: "Addepalli2021Towards_PARN18",
        11_220_132: "Modas2021PRIMEResNet18",
        24_937_152: "Diffenderfer2021Winning_Binary",
        44_755_172: "Diffenderfer2021Winning_LRR",
        46_218_164: "Addepalli2022Efficient_WRN_34_10",
        48_320_276: "Addepalli2021Towards_WRN34",
        149_622_912: "Diffenderfer2021Winning_Binary_CARD_Deck",
        266_888_756: "Gowal2020Uncovering_Linf Gowal2020Uncovering_extra_Linf",
        268_531_032: "Diffenderfer2021Winning_LRR_CARD_Deck",
    },
    "imagenet/Linf": {
        11_689_512: "Salman2020Do_R18",
        22_777_576: "Singh2023Revisiting_ViT-S-ConvStem",
        25_557_032: "Wong2020Fast Engstrom2019Robustness Salman2020Do_R50",
        26_253_304: "Debenedetti2022Light_XCiT-S12",
        28_627_432: "Singh2023Revisiting_ConvNeXt-T-ConvStem",
        46_401_160: "Debenedetti2022Light_XCiT-M12",
        50_261_992: "Singh2023Revisiting_ConvNeXt-S-ConvStem",
        68_883_240: "Salman2020Do_50_2 Chen2024Data_WRN_50_2",
        86_567_656: "Mo2022When_ViT-B",
        87_147_112: "Singh2023Revisiting_ViT-B-ConvStem",
        87_768_224: """
            Liu2023Comprehensive_Swin-B Mo2022When_Swin-B RodriguezMunoz2024Characterizing_Swin-B
            Xu2024MIMIR_Swin-B
        """,
        88_591_464: "Liu2023Comprehensive_ConvNeXt-B",
        88_753_416: "Singh2023Revisiting_ConvNeXt-B-ConvStem",
        103_792_648: "Debenedetti2022Light_XCiT-L12",
        104_065_776: "Peng2023Robust",
        196_532_476: "Liu2023Comprehensive_Swin-L Amini2024MeanSparse_Swin-L RodriguezMunoz2024Characterizing_Swin-L",
        196_794_556: "Xu2024MIMIR_Swin-L",
        197_767_336: "Liu2023Comprehensive_ConvNeXt-L Amini2024MeanSparse_ConvNeXt-L",
        198_134_680: "Singh2023Revisiting_ConvNeXt-L-ConvStem",
        394_489_329: "Bai2024MixedNUTS",
    },
    "imagenet/corruptions": {
        22_050_664: "Tian2022Deeper_DeiT-S",
        25_557_032: """
            Erichson2022NoisyMix Erichson2022NoisyMix_new Geirhos2018_SIN Geirhos2018_SIN_IN
            Geirhos2018_SIN_IN_IN Hendrycks2020Many Hendrycks2020AugMix
        """,
        61_100_840: "AlexNet",
        68_883_240: "Salman2020Do_50_2_Linf",
        86_567_656: "Tian2022Deeper_DeiT-B",
    },
}

PARAMETERS: dict[str, dict[str, int]] = _OWN | {
    f"{folder}/{model}": {folder.split("/")[0]: count}
    for folder, by_count in _OF_ZOO.items()
    for count, models in by_count.items()
    for model in models.split()
}
"""Name of an architecture -> data set -> number of parameters for the data set's images and classes."""
